//! Comma-separated values after RFC 4180, taken literally.
//!
//! Lenient readers make a row out of anything; a quote that is never closed then swallows the rest of the file without a
//! word. Here every departure from the grammar is a fault with its line.
//!
//! This is not the crate `csv`, whose parser takes every text for a table and reports none of these faults: neither a quote
//! that is never closed nor a stray one nor text behind a closing quote. Finding them beside it takes the state machine
//! below again, all of it.

/// A record of the file: the line it begins in, counted from 1, and its fields, or what is wrong with it.
pub(super) type Record = (usize, Result<Vec<String>, Fault>);

/// A departure from the grammar.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A quote inside a field that does not begin with one.
    StrayQuote,
    /// Text between a closing quote and the next separator.
    AfterQuote,
    /// A quoted field that the file ends in: nothing behind its quote can be told apart.
    Unclosed,
}

/// Cuts a text into records. A record with a fault ends at its line; lines that are empty outside quotes are no records.
pub(super) fn records(text: &str, separator: char) -> Vec<Record> {
    let mut records = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while !rest.is_empty() {
        let start = line;
        let (fields, length) = match record(rest, separator) {
            Ok((fields, length)) => (Ok(fields), length),
            // An unclosed quote leaves no line to go on with.
            Err(Fault::Unclosed) => (Err(Fault::Unclosed), rest.len()),
            Err(fault) => (Err(fault), rest.find('\n').map_or(rest.len(), |end| end + 1)),
        };
        line += rest[..length].matches('\n').count();
        let blank = rest[..length].trim_matches(['\r', '\n']).is_empty();
        rest = &rest[length..];
        if !blank {
            records.push((start, fields));
        }
    }
    records
}

/// The first record of a text and its length in bytes, its line break included.
fn record(text: &str, separator: char) -> Result<(Vec<String>, usize), Fault> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut closed = false;
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let field = fields.last_mut().expect("one field at least");
        match character {
            '"' if quoted && characters.next_if(|(_, next)| *next == '"').is_some() => field.push('"'),
            '"' if quoted => (quoted, closed) = (false, true),
            '"' if field.is_empty() && !closed => quoted = true,
            '"' => return Err(Fault::StrayQuote),
            _ if quoted => field.push(character),
            _ if character == separator => {
                fields.push(String::new());
                closed = false;
            }
            '\n' => return Ok((fields, at + 1)),
            '\r' if characters.peek().is_none_or(|(_, next)| *next == '\n') => {}
            _ if closed => return Err(Fault::AfterQuote),
            _ => field.push(character),
        }
    }
    if quoted { Err(Fault::Unclosed) } else { Ok((fields, text.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<(usize, Vec<String>)> {
        records(text, ',').into_iter().map(|(line, fields)| (line, fields.expect("no fault"))).collect()
    }

    #[test]
    fn the_grammar_of_rfc_4180() {
        let text = "a,b\r\n\"x, \"\"y\"\"\nz\",\r\n\r\n,é\n\"\",\"\"";
        let expected = [
            (1, vec!["a".to_string(), "b".into()]),
            (2, vec!["x, \"y\"\nz".into(), String::new()]),
            (5, vec![String::new(), "é".into()]),
            (6, vec![String::new(), String::new()]),
        ];
        assert_eq!(fields(text), expected);
        assert_eq!(fields(""), []);
    }

    #[test]
    fn departures_are_faults_of_their_line_alone() {
        let faults = |text: &str| records(text, ',').into_iter().map(|(line, r)| (line, r.err())).collect::<Vec<_>>();
        assert_eq!(faults("a\nb\"c\nd"), [(1, None), (2, Some(Fault::StrayQuote)), (3, None)]);
        assert_eq!(faults("\"a\"b\nc"), [(1, Some(Fault::AfterQuote)), (2, None)]);
        assert_eq!(faults("a\n\"b\nc"), [(1, None), (2, Some(Fault::Unclosed))]);
        assert_eq!(faults("\"\"\"\n"), [(1, Some(Fault::Unclosed))]);
    }
}
