//! Every verb that blocks has every form, and the macro `verbs!` wrote it: checked in the sources.
#![cfg(not(outlast_loom))]
#[path = "common/sources.rs"]
mod sources;

use sources::Source;
use std::collections::BTreeSet;
use std::fmt;

/// The macro itself; and what is built on the crate as any program could be: what that waits for is
/// not in shared memory.
const OUTSIDERS: [&str; 5] = ["wait/verbs.rs", "process/", "pool/", "command.rs", "sys/"];

/// Forms that do not exist, and methods that only look like forms, each with the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("Barrier", "try_wait", "a party that arrives cannot take that back"),
    ("Condition", "try_wait", "there is nothing to try: a notify is not kept"),
    ("Condition", "wait_while", "its function is the last argument, as in the standard library"),
    ("Condition", "wait_timeout_while", "of `wait_while`"),
    ("Condition", "wait_deadline_while", "of `wait_while`"),
    ("receiving!", "try_iter", "the blocking form is `iter`"),
    ("Journal", "write", "never blocks: a record for which there is no room is lost"),
    ("Event", "set", "no verb of this name: never blocks"),
    ("Latch", "join", "another verb of this name: registers a member, and never blocks"),
    ("Latch", "try_arrive_and_wait", "an arrival cannot be taken back"),
    ("Loan", "send", "never blocks: it has its slot"),
    ("OnceCell", "try_wait", "that is `get`"),
    ("Producer", "try_send_batch", "sends as many as there is room for, and returns their number"),
    ("Records", "try_next", "the blocking form is `Iterator::next`"),
    ("Records", "next_timeout", "the blocking form is `Iterator::next`"),
    ("Records", "next_deadline", "the blocking form is `Iterator::next`"),
    ("ReentrantLockGuard", "set", "no verb of this name: never blocks"),
    ("Shared", "close_timeout", "`drop` does not block, so that memory that stays mapped is told"),
    ("Shared", "open_timeout", "`open` does not block, so that a wrong name is told"),
    ("Shared", "open_deadline", "of `open`"),
    ("Spin", "set", "no verb of this name: never blocks"),
    ("WriteChunk", "set", "no verb of this name: never blocks"),
    ("Shared", "try_clone_fd", "no verb: named as in the standard library"),
];

/// A method, by the type that has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Method {
    file: String,
    of: String,
    name: String,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}::{}", self.file, self.of, self.name)
    }
}

/// A verb that the macro writes, and its other forms.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verb {
    method: Method,
    forms: Vec<String>,
}

/// What a file has. The verbs of a macro's template are those of a type with the macro's name, as
/// `receiving!`.
#[derive(Debug, Default)]
struct Found {
    verbs: Vec<Verb>,
    /// Which template is used for which type.
    uses: Vec<(String, Method)>,
    /// Public functions outside of the macro, each with the first paragraph of its documentation.
    by_hand: Vec<(Method, String)>,
}

/// The sources that may use the macro.
fn sources() -> Vec<Source> {
    let mut all = sources::sources("src");
    all.retain(|(file, _)| !OUTSIDERS.iter().any(|outsider| file.starts_with(outsider)));
    all
}

/// The identifier with which a text begins.
fn identifier(text: &str) -> String {
    text.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect()
}

/// The type of an `impl` line: `Lock` of `impl<T: Plain> Lock<T> {`.
fn type_of(line: &str) -> Option<String> {
    let rest = line.strip_prefix("impl")?;
    let mut depth = 0;
    let end = rest.char_indices().find(|&(i, c)| {
        depth += i32::from(c == '<') - i32::from(c == '>' && !rest[..i].ends_with('-'));
        depth == 0 && c == ' '
    });
    let rest = &rest[end?.0 + 1..];
    Some(identifier(rest.split(" for ").last()?))
}

/// The type for which a template is used: `Queue` of `impl [T: Plain] Queue<T>;`.
fn type_of_use(body: &[&str]) -> Option<String> {
    let lines = body.iter().map(|line| line.trim()).filter(|line| !line.starts_with("///"));
    let text: String = lines.flat_map(|line| [line, " "]).collect();
    let mut depth = 0;
    let end = text.char_indices().find(|&(_, c)| {
        depth += i32::from(c == '[') - i32::from(c == ']');
        depth == 0 && c == ']'
    });
    Some(identifier(text[end?.0 + 1..].trim_start()))
}

/// The statements of a macro's body, without comments and attributes.
fn statements(body: &[&str]) -> Vec<String> {
    let lines = body.iter().map(|line| line.trim());
    let without = ["//", "#[", "$(#["];
    let code = lines.filter(|line| !without.iter().any(|start| line.starts_with(start)));
    let (mut all, mut depth) = (vec![String::new()], 0);
    for c in code.flat_map(|line| line.chars().chain([' '])) {
        depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
        if c == ';' && depth == 0 {
            all.push(String::new());
        } else {
            all.last_mut().unwrap().push(c);
        }
    }
    all.iter().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect()
}

fn find(file: &str, text: &str) -> Found {
    let lines: Vec<&str> = text.lines().collect();
    let (mut found, mut of, mut i) = (Found::default(), String::new(), 0);
    let method = |of: &str, name| Method { file: file.to_owned(), of: of.to_owned(), name };
    while let Some(line) = lines.get(i) {
        i += 1;
        if line.starts_with("impl") {
            of = type_of(line).unwrap_or_default();
        } else if let Some(name) = line.strip_prefix("macro_rules! ") {
            of = format!("{}!", identifier(name));
        }
        let code = line.trim_start();
        let template = line.strip_suffix("! {").and_then(|path| path.rsplit("::").next());
        if let Some(template) =
            template.filter(|name| !line.starts_with(' ') && **name == identifier(name))
        {
            let body = lines[i..].iter().take_while(|line| **line != "}").count();
            let of = type_of_use(&lines[i..i + body]).unwrap_or_default();
            found.uses.push((format!("{template}!"), method(&of, String::new())));
            i += body;
        } else if code.rsplit("::").next() == Some("verbs! {") {
            let end = format!("{}}}", &line[..line.len() - code.len()]);
            let body = lines[i..].iter().take_while(|line| **line != end).count();
            for statement in statements(&lines[i..i + body]) {
                let head = statement.split("->").next().unwrap();
                match head.strip_prefix("pub fn ") {
                    Some(head) => found
                        .verbs
                        .push(Verb { method: method(&of, identifier(head)), forms: Vec::new() }),
                    None => {
                        let forms = head.split(',').map(|form| form.trim().to_owned());
                        found.verbs.last_mut().unwrap().forms.extend(forms);
                    }
                }
            }
            i += body;
        } else if let Some(rest) = code.strip_prefix("pub fn ") {
            let above = lines[..i - 1].iter().rev().map(|line| line.trim_start());
            let docs = above.take_while(|line| line.starts_with("///") || line.starts_with("#["));
            let docs: Vec<&str> = docs.filter_map(|line| line.strip_prefix("///")).collect();
            let first = docs.into_iter().rev().take_while(|line| !line.is_empty());
            found.by_hand.push((method(&of, identifier(rest)), first.collect()));
        }
    }
    found
}

/// Whether documentation begins as that of a verb that blocks.
fn blocks(docs: &str) -> bool {
    ["Blocks ", "blocks until", "blocking until"].iter().any(|words| docs.contains(words))
}

/// Whether a name is that of another form than the blocking one.
fn is_form(name: &str) -> bool {
    name.starts_with("try_") || name.contains("_timeout") || name.contains("_deadline")
}

/// All that is wrong, in words, and all verbs.
fn check(sources: &[Source]) -> (Vec<String>, Vec<Verb>) {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    let mut is_excepted = |of: &str, name: &str| {
        let exception = EXCEPTIONS.iter().position(|(o, n, _)| (*o, *n) == (of, name));
        used.extend(exception);
        exception.is_some()
    };
    let found: Vec<Found> = sources.iter().map(|(file, text)| find(file, text)).collect();
    let written: Vec<Verb> = found.iter().flat_map(|found| found.verbs.clone()).collect();
    let uses = found.iter().flat_map(|found| &found.uses);
    let by_use = uses.flat_map(|(template, by)| {
        let verbs = written.iter().filter(move |verb| verb.method.of == *template);
        verbs.map(move |verb| {
            let name = verb.method.name.clone();
            Verb { method: Method { name, ..by.clone() }, forms: verb.forms.clone() }
        })
    });
    let verbs: Vec<Verb> = written.iter().cloned().chain(by_use).collect();
    let names: BTreeSet<&str> = verbs.iter().map(|verb| verb.method.name.as_str()).collect();
    for Verb { method, forms } in &written {
        let name = &method.name;
        let expected =
            [format!("try_{name}"), format!("{name}_timeout"), format!("{name}_deadline")];
        for form in &expected {
            if !forms.contains(form) && !is_excepted(&method.of, form) {
                wrong.push(format!("{method} has no form `{form}`"));
            }
        }
        for form in forms.iter().filter(|form| !expected.contains(form)) {
            wrong.push(format!("{method}: `{form}` is no name of a form"));
        }
    }
    for (method, docs) in found.iter().flat_map(|found| &found.by_hand) {
        let is_verb = names.contains(method.name.as_str()) || is_form(&method.name) || blocks(docs);
        if is_verb && !is_excepted(&method.of, &method.name) {
            wrong.push(format!("{method} is written by hand, not by `verbs!`"));
        }
    }
    for (i, (of, name, reason)) in EXCEPTIONS.iter().enumerate() {
        if !used.contains(&i) {
            wrong.push(format!("{of}::{name} needs no exception any more ({reason})"));
        }
    }
    (wrong, verbs)
}

#[test]
fn every_verb_has_every_form() {
    let (wrong, verbs) = check(&sources());
    for Verb { method, forms } in &verbs {
        eprintln!("{method}: {}", forms.join(", "));
    }
    let of = |of: &str| verbs.iter().filter(|verb| verb.method.of == of).count();
    assert!(verbs.len() >= 80, "the sources are not read: {}", verbs.len());
    let queues = ["Queue", "PriorityQueue", "ByteQueue", "ValueQueue", "Receiver", "Channel"];
    assert!(queues.iter().all(|queue| of(queue) > 0), "a template's uses are not read");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The check itself: it finds what is planted, and nothing more.
#[test]
fn planted_gaps_are_found() {
    let planted = |file: &str, from: &str, to: &str| {
        let mut sources = sources();
        let (_, text) = sources.iter_mut().find(|(name, _)| name == file).unwrap();
        assert_eq!(text.matches(from).count(), 1, "{file}: {from}");
        *text = text.replace(from, to);
        check(&sources).0
    };
    let by_hand = "impl Event {\n    /// Waits.\n    pub fn wait_timeout(&self) {}\n}\nfn end() {}";
    let blocking =
        "impl Event {\n    /// Waits, blocking until it is set.\n    pub fn see(&self) {}\n}";
    let wrong = [
        ("event.rs", "        try_wait -> bool, else false;\n", ""),
        ("event.rs", "try_wait -> bool", "attempt_wait -> bool"),
        ("event.rs", "impl fmt::Debug for Event {", by_hand),
        ("event.rs", "impl fmt::Debug for Event {", blocking),
        // Another type has this verb.
        ("event.rs", "    pub fn is_set(", "    pub fn acquire("),
        ("latch.rs", "pub fn arrive_and_wait(", "pub fn arrive_then_wait("),
    ];
    for (file, from, to) in wrong {
        assert!(!planted(file, from, to).is_empty(), "{file}: {from} -> {to}");
    }
    let right = [
        ("event.rs", "    pub fn is_set(", "    pub fn is_really_set("),
        (
            "event.rs",
            "impl fmt::Debug for Event {",
            "// pub fn wait_timeout\nimpl fmt::Debug for Event {",
        ),
    ];
    for (file, from, to) in right {
        assert_eq!(planted(file, from, to), [""; 0], "{file}: {from} -> {to}");
    }
    // An exception that no source needs any more.
    let mut sources = sources();
    sources.retain(|(file, _)| file != "barrier.rs");
    assert_eq!(check(&sources).0.len(), 1, "{:?}", check(&sources).0);
}

#[test]
fn types_are_read() {
    let types = [
        ("impl Event {", "Event"),
        ("impl<T: Plain> Lock<T> {", "Lock"),
        ("impl<'a, T: Plain, F: Fn() -> bool> End<'a, T, SENDS> {", "End"),
        ("impl<C: Deref<Target = Pipe>> Connection<C> {", "Connection"),
        ("impl<T: Plain> Drop for Guard<'_, T> {", "Guard"),
    ];
    for (line, of) in types {
        assert_eq!(type_of(line).as_deref(), Some(of), "{line}");
    }
}
