//! Bounds what a template may build and look through: the engine counts instructions, and one instruction can double a text.
//!
//! In a compiled template, the instructions whose work grows with their operands are replaced by calls of functions that do
//! the same and count the bytes first; where no function can take the place of one, a call that only counts is put before it.
//! All that a rendering makes and looks through together is bounded, not what it holds at a time: simpler, and far above what
//! conversations need. What is printed is counted where it is printed ([`super::print`]).

use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, context};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Bytes that one rendering may make and look through.
pub const BYTES: u64 = 512 << 20;
/// A value in a list.
pub const NODE: u64 = 32;
/// A value that is visited to be counted: what it takes in time.
const VISIT: u64 = 32;
/// Values in one constant of a template.
const CONSTANT: u64 = 10_000;
/// Levels of lists and objects inside one another.
const DEPTH: usize = 128;

thread_local! {
    /// What is left of [`BYTES`].
    static LEFT: Cell<u64> = const { Cell::new(BYTES) };
}

/// Begins a rendering.
pub fn begin() {
    LEFT.set(BYTES);
}

/// Counts bytes that are about to be made or looked through.
///
/// # Errors
/// More than a rendering may make.
pub fn spend(bytes: u64) -> Result<(), Error> {
    match LEFT.get().checked_sub(bytes) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("it builds or reads more than {} MiB of texts and lists", BYTES >> 20),
        )),
    }
}

/// Counts what is constant in a template: the engine works it out while it compiles, and keeps `[1] * 1000000000` as a list
/// that is made again wherever it is read.
///
/// # Errors
/// More than [`CONSTANT`] values in one.
pub fn check_constants(instructions: &Instructions) -> Result<(), Error> {
    for at in 0..instructions.len() as u32 {
        if let Some(Instruction::LoadConst(value)) = instructions.get(at) {
            LEFT.set(CONSTANT * VISIT);
            let checked = weigh(value, false, 0);
            begin();
            checked.map_err(|_| {
                let detail = format!("a constant of more than {CONSTANT} values");
                Error::new(ErrorKind::InvalidOperation, detail)
            })?;
        }
    }
    Ok(())
}

/// The names of the functions that take the place of filters, tests and methods: `|filter`, `?test`, `.method`.
pub fn calls(instructions: &Instructions, names: &mut BTreeSet<String>) {
    for at in 0..instructions.len() as u32 {
        match instructions.get(at) {
            Some(Instruction::ApplyFilter(name, ..)) => drop(names.insert(format!("|{name}"))),
            Some(Instruction::PerformTest(name, ..)) => drop(names.insert(format!("?{name}"))),
            Some(Instruction::CallMethod(name, _)) => drop(names.insert(format!(".{name}"))),
            _ => {}
        }
    }
}

/// The instructions with calls of the counting functions, whose `names` are [`calls`]'.
pub fn guarded<'s>(instructions: &Instructions<'s>, names: &'s BTreeSet<String>) -> Instructions<'s> {
    let all = || (0..instructions.len() as u32).filter_map(|at| Some((at, instructions.get(at)?)));
    // Where each instruction begins when its calls are put before it, and where the last one ends.
    let mut begins: Vec<u32> = vec![0];
    for (_, instruction) in all() {
        begins.push(begins[begins.len() - 1] + counted(instruction, names).len() as u32);
    }
    let moved = |target: u32| begins.get(target as usize).copied().unwrap_or(target);
    let mut result = Instructions::new(instructions.name(), instructions.source());
    for (at, instruction) in all() {
        for mut instruction in counted(instruction, names) {
            match &mut instruction {
                Instruction::Iterate(target)
                | Instruction::Jump(target)
                | Instruction::JumpIfFalse(target)
                | Instruction::JumpIfFalseOrPop(target)
                | Instruction::JumpIfTrueOrPop(target)
                | Instruction::BuildMacro(_, target, _) => *target = moved(*target),
                _ => {}
            }
            match (instructions.get_span(at), instructions.get_line(at)) {
                (Some(span), _) => result.add_with_span(instruction, span),
                (None, Some(line)) => result.add_with_line(instruction, line as u16),
                (None, None) => result.add(instruction),
            };
        }
    }
    result
}

/// What takes the place of an instruction.
fn counted<'s>(instruction: &Instruction<'s>, names: &'s BTreeSet<String>) -> Vec<Instruction<'s>> {
    let call = |name, count| vec![Instruction::CallFunction(name, Some(count))];
    let named = |name: String, count| match names.get(&name) {
        Some(name) => vec![Instruction::CallFunction(name.as_str(), count)],
        None => vec![instruction.clone()],
    };
    // Looks at what is on the stack and puts it back.
    let before = |name, count: usize| {
        let look = Instruction::CallFunction(name, u16::try_from(count).ok());
        vec![look, Instruction::UnpackList(count), instruction.clone()]
    };
    match instruction {
        // The one that there is would not be counted.
        Instruction::Include(_) | Instruction::LoadBlocks => call("%include", 1),
        Instruction::Add => call("+", 2),
        Instruction::Mul => call("*", 2),
        Instruction::StringConcat => call("~", 2),
        Instruction::Eq => call("==", 2),
        Instruction::Ne => call("!=", 2),
        Instruction::Lt => call("<", 2),
        Instruction::Lte => call("<=", 2),
        Instruction::Gt => call(">", 2),
        Instruction::Gte => call(">=", 2),
        Instruction::In => call("%in", 2),
        Instruction::GetItem => call("[]", 2),
        Instruction::Slice => call("[:]", 4),
        Instruction::BuildList(None) => vec![Instruction::CallFunction("[", None)],
        Instruction::BuildList(Some(count)) if u16::try_from(*count).is_ok() => call("[", *count as u16),
        Instruction::BuildMap(pairs) if u16::try_from(2 * pairs).is_ok() => call("{", 2 * *pairs as u16),
        Instruction::ApplyFilter(name, count, _) => named(format!("|{name}"), *count),
        Instruction::PerformTest(name, count, _) => named(format!("?{name}"), *count),
        Instruction::CallMethod(name, count) => named(format!(".{name}"), *count),
        Instruction::CompareAndPreserve(_) => before("%compare", 2),
        Instruction::SetAttr(_) => before("%set", 2),
        Instruction::UnpackLists(count) => before("%unpack", *count),
        Instruction::PushLoop(_) => vec![Instruction::CallFunction("%for", Some(1)), instruction.clone()],
        Instruction::EmitRaw(text) => vec![
            Instruction::LoadConst(Value::from(text.len())),
            Instruction::CallFunction("%write", Some(1)),
            Instruction::DiscardTop,
            instruction.clone(),
        ],
        _ => vec![instruction.clone()],
    }
}

/// Adds the functions that [`guarded`] instructions call. None of their names can be written in a template.
pub fn add_functions(environment: &mut Environment, names: &BTreeSet<String>) {
    // Jinja has none, and a chain of chains is as deep as it is long.
    environment.remove_filter("chain");
    environment.add_function("%include", |_: Value| -> Result<Value, Error> {
        let detail = "it includes or extends another template, and there is none";
        Err(Error::new(ErrorKind::TemplateNotFound, detail))
    });
    environment.add_function("+", |a: Value, b: Value| add(&a, &b));
    environment.add_function("*", |a: Value, b: Value| multiply(&a, &b));
    environment.add_function("~", |a: Value, b: Value| joined(&a, &b));
    environment.add_function("==", |a: Value, b: Value| compared(&a, &b).map(|()| a == b));
    environment.add_function("!=", |a: Value, b: Value| compared(&a, &b).map(|()| a != b));
    environment.add_function("<", |a: Value, b: Value| compared(&a, &b).map(|()| a < b));
    environment.add_function("<=", |a: Value, b: Value| compared(&a, &b).map(|()| a <= b));
    environment.add_function(">", |a: Value, b: Value| compared(&a, &b).map(|()| a > b));
    environment.add_function(">=", |a: Value, b: Value| compared(&a, &b).map(|()| a >= b));
    environment.add_function("%in", |state: &State, item: Value, of: Value| {
        compared(&item, &of)?;
        state.perform_test("in", &[item, of])
    });
    environment.add_function("[]", |of: Value, key: Value| {
        spend(text_length(&of))?;
        of.get_item(&key)
    });
    environment.add_function("[:]", |state: &State, of: Value, start: Value, stop: Value, step: Value| {
        spend(shallow(&of))?;
        let slice = state.env().compile_expression("of[start:stop:step]")?;
        slice.eval(context! { of, start, stop, step }).and_then(settled)
    });
    environment.add_function("[", |items: Rest<Value>| settled(Value::from(items.0)));
    environment.add_function("{", |items: Rest<Value>| {
        settled(items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
    });
    // The last operand lies on top, where unpacking puts the first.
    let put_back = |mut values: Vec<Value>| {
        values.reverse();
        Value::from(values)
    };
    environment.add_function("%compare", move |values: Rest<Value>| {
        values.iter().try_for_each(|value| weigh(value, true, 0)).map(|()| put_back(values.0))
    });
    environment.add_function("%set", move |values: Rest<Value>| {
        values.first().map_or(Ok(()), |value| weigh(value, false, 0)).map(|()| put_back(values.0))
    });
    environment.add_function("%unpack", move |values: Rest<Value>| {
        values.iter().try_for_each(|value| spend(shallow(value))).map(|()| put_back(values.0))
    });
    environment.add_function("%for", |of: Value| spend(text_length(&of)).map(|()| of));
    environment.add_function("%write", |bytes: u64| spend(bytes));
    for name in ["dict", "namespace"] {
        let Some((_, make)) = environment.globals().find(|(global, _)| *global == name) else { continue };
        environment.add_function(name, move |state: &State, values: Rest<Value>| {
            values.iter().try_for_each(|value| weigh(value, false, 0))?;
            make.call(state, &values)
        });
    }
    for name in names {
        let (kind, own) = name.split_at(1);
        let own = own.to_string();
        match kind {
            "|" => environment
                .add_function(name.clone(), move |state: &State, values: Rest<Value>| filtered(state, &own, &values)),
            "?" => environment.add_function(name.clone(), move |state: &State, values: Rest<Value>| {
                values.iter().try_for_each(|value| spend(text_length(value)))?;
                if values.len() > 1 {
                    values.iter().try_for_each(|value| weigh(value, true, 0))?;
                }
                state.perform_test(&own, &values).map_err(|error| match error.kind() {
                    ErrorKind::UnknownTest => Error::new(error.kind(), format!("test {own} is unknown")),
                    _ => error,
                })
            }),
            _ => environment.add_function(name.clone(), move |state: &State, values: Rest<Value>| {
                before(false, &own, &values)?;
                let Some((of, rest)) = values.split_first() else { return Ok(Value::UNDEFINED) };
                of.call_method(state, &own, rest).and_then(settled)
            }),
        }
    }
}

/// `value|name(…)`
fn filtered(state: &State, name: &str, values: &[Value]) -> Result<Value, Error> {
    before(true, name, values)?;
    // A filter for each item of a list.
    if let ("map", [list, rest @ ..]) = (name, values) {
        let (rest, _): (&[Value], Kwargs) = from_args(rest)?;
        if let Some((Some(name), rest)) = rest.split_first().map(|(name, rest)| (name.as_str(), rest)) {
            let mut items = Vec::new();
            for item in list.try_iter()? {
                let values: Vec<Value> = [item].into_iter().chain(rest.iter().cloned()).collect();
                items.push(filtered(state, name, &values)?);
            }
            return Ok(Value::from(items));
        }
    }
    let result = state.apply_filter(name, values).map_err(|error| match error.kind() {
        ErrorKind::UnknownFilter => Error::new(error.kind(), format!("filter {name} is unknown")),
        _ => error,
    })?;
    settled(result)
}

/// A result, counted; a list that would be made when it is read is made now.
fn settled(value: Value) -> Result<Value, Error> {
    let value = match value.kind() {
        ValueKind::Iterable => {
            let mut items = Vec::new();
            for item in value.try_iter()? {
                spend(NODE)?;
                items.push(item);
            }
            Value::from(items)
        }
        _ => value,
    };
    spend(text_length(&value))?;
    weigh(&value, false, 0)?;
    Ok(value)
}

/// Counts what a comparison looks through.
fn compared(a: &Value, b: &Value) -> Result<(), Error> {
    weigh(a, true, 0)?;
    weigh(b, true, 0)
}

fn text_length(value: &Value) -> u64 {
    value.as_str().map_or(0, str::len) as u64
}

/// Bytes of a value without those of its parts, which it shares.
fn shallow(value: &Value) -> u64 {
    match value.as_str() {
        Some(text) => text.len() as u64,
        None => NODE * (1 + value.len().unwrap_or(0) as u64),
    }
}

/// Counts every value inside a value as often as it is there, with its `texts` or without.
fn weigh(value: &Value, texts: bool, depth: usize) -> Result<(), Error> {
    spend(VISIT)?;
    if depth > DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value is nested too deeply"));
    }
    match value.kind() {
        ValueKind::String if texts => spend(text_length(value)),
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.try_for_each(|item| weigh(&item, texts, depth + 1)),
        ValueKind::Map => value.try_iter()?.try_for_each(|key| weigh(&value.get_item(&key)?, texts, depth + 1)),
        _ => Ok(()),
    }
}

/// Counts what a filter or method is about to make, where that may be more than what it is given.
fn before(is_filter: bool, name: &str, values: &[Value]) -> Result<(), Error> {
    let text = |at: usize| values.get(at).and_then(Value::as_str).unwrap_or_default();
    // Of a text, its characters.
    let items = |value: Option<&Value>| match value.map(|value| (value.as_str(), value.len())) {
        Some((Some(text), _)) => text.chars().count() as u64,
        Some((None, Some(n))) => n as u64,
        _ => 0,
    };
    let whole = |value: &Value| value.as_i64().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    values.iter().try_for_each(|value| spend(text_length(value)))?;
    match name {
        "replace" => {
            let found = match text(1) {
                "" => text(0).chars().count() + 1,
                from => text(0).matches(from).count(),
            };
            spend((found as u64).saturating_mul(text(2).len() as u64))
        }
        "join" => {
            // A filter has the separator behind the list, a method in front of it.
            let (list, separator) = if is_filter { (0, 1) } else { (1, 0) };
            let Some(list) = values.get(list) else { return Ok(()) };
            spend(items(Some(list)).saturating_mul(text(separator).len() as u64 + NODE))?;
            let Ok(items) = list.try_iter() else { return Ok(()) };
            items.map(|item| item.as_str().map_or(0, str::len) as u64).try_for_each(spend)
        }
        "format" => {
            // A width in the format itself.
            let widths = text(0).split(|c: char| !c.is_ascii_digit()).filter_map(|digits| match digits.is_empty() {
                true => None,
                false => Some(digits.parse().unwrap_or(BYTES)),
            });
            widths.into_iter().try_for_each(spend)?;
            values.iter().skip(1).map(whole).try_for_each(|n| if text(0).contains('*') { spend(n) } else { Ok(()) })
        }
        "split" | "rsplit" => {
            let pieces = match text(1) {
                "" => text(0).split_whitespace().count(),
                separator => text(0).matches(separator).count() + 1,
            };
            spend(2 * NODE * pieces as u64)
        }
        "splitlines" | "lines" => {
            spend(2 * NODE * (1 + text(0).bytes().filter(|b| matches!(b, b'\n' | b'\r')).count()) as u64)
        }
        // Control characters become five or six.
        "pprint" => spend(5 * text(0).len() as u64),
        "list" | "reverse" => spend(NODE * items(values.first())),
        "sort" | "unique" | "min" | "max" | "groupby" | "dictsort" | "select" | "reject" | "selectattr"
        | "rejectattr" | "index" | "count" => values.iter().try_for_each(|value| weigh(value, true, 0)),
        "indent" | "batch" | "slice" => {
            let lines = 1 + text(0).matches('\n').count() as u64;
            let mut widest = values.iter().skip(1).map(whole).max().unwrap_or(0);
            // Named arguments come as one value.
            for named in values.iter().skip(1).filter(|value| value.kind() == ValueKind::Map) {
                let numbers = named.try_iter()?.filter_map(|key| named.get_item(&key).ok()).map(|value| whole(&value));
                widest = numbers.fold(widest, u64::max);
            }
            spend(widest.saturating_mul(lines.max(NODE)))?;
            spend(if name == "indent" { 0 } else { 4 * NODE * items(values.first()) })
        }
        _ => Ok(()),
    }
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn impossible(operator: &str, a: &Value, b: &Value) -> Error {
    let detail = format!("tried to use {operator} operator on unsupported types {} and {}", a.kind(), b.kind());
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// The result of a number and a number; none where one of them is none.
fn numbers(
    a: &Value,
    b: &Value,
    whole: fn(i128, i128) -> Option<i128>,
    real: fn(f64, f64) -> f64,
) -> Option<Result<Value, Error>> {
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !(is_number(a) && is_number(b)) {
        return None;
    }
    let is_whole = |value: &Value| value.is_integer() || value.kind() == ValueKind::Bool;
    if is_whole(a) && is_whole(b) {
        let both = i128::try_from(a.clone()).ok().zip(i128::try_from(b.clone()).ok());
        let result = both.and_then(|(a, b)| whole(a, b));
        let beyond = || Error::new(ErrorKind::InvalidOperation, "a whole number of more than 128 bits");
        return Some(result.map(Value::from).ok_or_else(beyond));
    }
    let both = f64::try_from(a.clone()).and_then(|a| Ok((a, f64::try_from(b.clone())?)));
    Some(both.map(|(a, b)| Value::from(real(a, b))))
}

/// `a + b`
fn add(a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some(result) = numbers(a, b, i128::checked_add, |a, b| a + b) {
        return result;
    }
    if let (Some(left), Some(right)) = (a.as_str(), b.as_str()) {
        spend((left.len() + right.len()) as u64)?;
        return Ok(Value::from([left, right].concat()));
    }
    if !(is_list(a) && is_list(b)) {
        return Err(impossible("+", a, b));
    }
    let mut items = Vec::new();
    for item in a.try_iter()?.chain(b.try_iter()?) {
        spend(NODE)?;
        items.push(item);
    }
    Ok(Value::from(items))
}

/// `a * b`
fn multiply(a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some(result) = numbers(a, b, i128::checked_mul, |a, b| a * b) {
        return result;
    }
    let (of, times) = if a.kind() == ValueKind::Number { (b, a) } else { (a, b) };
    if !times.is_integer() {
        return Err(impossible("*", a, b));
    }
    // As in Python, less than once is not at all.
    let times = usize::try_from(times.clone()).unwrap_or(if times.as_i64().is_some() { 0 } else { usize::MAX });
    if let Some(text) = of.as_str() {
        spend((text.len() as u64).saturating_mul(times as u64))?;
        return Ok(Value::from(text.repeat(times)));
    }
    if !is_list(of) {
        return Err(impossible("*", a, b));
    }
    let mut items = Vec::new();
    for _ in 0..times {
        for item in of.try_iter()? {
            spend(NODE)?;
            items.push(item);
        }
        if items.is_empty() {
            break;
        }
    }
    Ok(Value::from(items))
}

/// `a ~ b`
fn joined(a: &Value, b: &Value) -> Result<Value, Error> {
    struct Counted(String, Option<Error>);
    impl Write for Counted {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            spend(text.len() as u64).map_err(|error| {
                self.1 = Some(error);
                std::fmt::Error
            })?;
            self.0.push_str(text);
            Ok(())
        }
    }
    let mut counted = Counted(String::new(), None);
    match (write!(counted, "{a}{b}"), counted.1) {
        (_, Some(error)) => Err(error),
        (Err(error), None) => Err(error.into()),
        (Ok(()), None) => Ok(Value::from(counted.0)),
    }
}
