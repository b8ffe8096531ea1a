//! HTML text: everything that comes from a file passes through [`escape`].

use larpo_core::metrics::Estimate;
use std::fmt::Write;

/// A text as HTML, inside an element or a quoted attribute. Control characters, which HTML cannot hold, are shown as the
/// replacement character.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Appends; writing to a String cannot fail.
pub fn put(out: &mut String, text: std::fmt::Arguments) {
    let _ = out.write_fmt(text);
}

/// A number with its thousands set apart.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap_or("")).collect();
    groups.join(",")
}

/// A share in per cent.
pub fn percent(share: f64) -> String {
    // A space that does not break.
    format!("{:.1}\u{a0}%", 100.0 * share)
}

/// A mean with its interval, as HTML.
pub fn with_interval(e: &Estimate, show: impl Fn(f64) -> String) -> String {
    match e.interval {
        Some((low, high)) => format!("{} <small>[{}, {}]</small>", show(e.mean), show(low), show(high)),
        None => show(e.mean),
    }
}

/// A text of a file as a block that keeps its line breaks; what is beyond `limit` characters is folded away.
pub fn text_block(text: &str, limit: usize) -> String {
    let cut = text.char_indices().nth(limit).map(|(at, _)| at);
    match cut {
        _ if text.trim().is_empty() => "<span class=\"none\">(empty)</span>".into(),
        None => format!("<span class=\"text\">{}</span>", escape(text)),
        Some(at) => format!(
            "<details class=\"fold\"><summary><span class=\"text\">{}…</span></summary><span class=\"text\">…{}</span></details>",
            escape(&text[..at]),
            escape(&text[at..])
        ),
    }
}

/// A table: the first column is text, the others are numbers. Cells are HTML already.
pub fn table(headings: &[String], rows: &[Vec<String>]) -> String {
    filled("numbers", headings, rows)
}

/// A table whose cells are texts, HTML already.
pub fn words(headings: &[String], rows: &[Vec<String>]) -> String {
    filled("words", headings, rows)
}

fn filled(class: &str, headings: &[String], rows: &[Vec<String>]) -> String {
    let mut out = format!("<div class=\"scroll\"><table class=\"{class}\"><thead><tr>");
    headings.iter().for_each(|h| {
        // Writing to a String cannot fail, here and below.
        let _ = write!(out, "<th>{h}</th>");
    });
    out.push_str("</tr></thead><tbody>");
    for row in rows {
        out.push_str("<tr>");
        row.iter().for_each(|cell| {
            let _ = write!(out, "<td>{cell}</td>");
        });
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_text() {
        let hostile = "<script>alert('x')</script>\" onload=\"&amp;\u{0}\u{1b}[31m\n";
        let escaped = escape(hostile);
        assert!(!escaped.contains(['<', '>', '"', '\'']), "{escaped}");
        assert!(!escaped.chars().any(|c| c.is_control() && c != '\n'), "{escaped:?}");
        assert!(escaped.contains("&amp;amp;"), "{escaped}");
        // A cut falls between characters, not inside an escape or a code point.
        let cut = text_block("äöü<<<", 4);
        assert!(cut.contains("äöü&lt;…") && cut.contains("…&lt;&lt;"), "{cut}");
    }
}
