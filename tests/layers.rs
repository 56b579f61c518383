//! The layers drawn in `src/lib.rs`, circles of imports, and what belongs to one place only.
#![cfg(not(outlast_loom))]
#[path = "common/sources.rs"]
mod sources;

use sources::{Source, sources};
use std::collections::{BTreeMap, BTreeSet};

/// A module under another name: the loom model takes its place.
const STANDS_FOR: [(&str, &str); 1] = [("shared_model", "shared")];

/// What may be written in some files only.
struct Rule {
    pattern: &'static str,
    /// Files and folders (with a slash at the end) where it belongs.
    home: &'static [&'static str],
    /// Other files that may, and why. One that does not make use of it is an error.
    exceptions: &'static [(&'static str, &'static str)],
}

const RULES: [Rule; 3] = [
    Rule { pattern: "libc::", home: &["sys/"], exceptions: &[] },
    Rule {
        pattern: "core::sync::atomic",
        home: &["sync.rs"],
        exceptions: &[
            ("segment/header.rs", "segments lie outside of what loom models"),
            (
                "shareable.rs",
                "makes the standard library's other atomics shareable; loom has not all of them",
            ),
        ],
    },
    Rule {
        pattern: "cfg(",
        home: &["lib.rs", "sync.rs", "sys/mod.rs", "segment/mod.rs", "wait/robust/mod.rs"],
        exceptions: &[
            ("wait/mod.rs", "watching several words is for peers, which are no part of the model"),
            (
                "wait/robust/futex.rs",
                "tokens of peers, and the layout that the kernel knows, are no part of the model",
            ),
            ("shareable.rs", "the atomics that loom has not"),
            ("sys/stopwatch.rs", "tests of what no public verb shows"),
            (
                "log/mod.rs",
                "sinks for the crates `log` and `tracing`, which are optional, and no part of the model",
            ),
            ("any_error.rs", "errors of features"),
            ("owned.rs", "guards of features"),
            (
                "queue/mod.rs",
                "messages that the crate `serde` encodes, which is optional, and no part of the model",
            ),
        ],
    },
];

/// What is built on the crate as any program could be, to prove that this is enough.
const OUTSIDERS: [&str; 2] = ["process/", "pool/"];

/// All that they may use of it: what has a public name, and what knows nothing of shared memory.
const FOR_OUTSIDERS: [&str; 14] = [
    "error::",
    "event::",
    "process::",
    "segment::forks",
    "segment::{forks, leave}",
    "shareable::Shareable",
    "shared!",
    "shared::",
    // The operating system's calls, the atomics, points in time, and `postcard`, under the names
    // that they have in here.
    "sys::",
    "sync::atomic::",
    "deadline::Deadline",
    "queue::value",
    "wait::TimedOut",
    // How a descriptor is handed on by an environment variable.
    "command",
];

/// The modules of the drawing, each with its height: the lowest line is 0.
fn drawing(lib: &str) -> BTreeMap<String, usize> {
    let lines: Vec<&str> = lib
        .lines()
        .skip_while(|line| !line.starts_with("// The layers"))
        .skip(1)
        .take_while(|line| line.starts_with("//"))
        .filter_map(|line| line.strip_prefix("//   "))
        .collect();
    let mut heights = BTreeMap::new();
    for (height, line) in lines.iter().rev().enumerate() {
        // Names, a gap, and what they are for; the parts of a folder are in braces.
        let names = line.split("   ").next().unwrap_or("");
        for name in names.split_whitespace() {
            let module = name.split('/').next().unwrap_or(name);
            heights.insert(module.to_owned(), height);
        }
    }
    heights
}

/// A line without its comment. (No string in these sources holds two slashes.)
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or("")
}

fn module_of(file: &str) -> &str {
    let module = file.split(['/', '.']).next().unwrap_or(file);
    STANDS_FOR.iter().find(|(name, _)| *name == module).map_or(module, |(_, for_whom)| for_whom)
}

/// The modules that a line refers to from the crate's root.
fn references(file: &str, line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let at_root = !file.contains('/') || file.ends_with("/mod.rs");
    let prefixes: &[&str] = if at_root && file.contains('/') {
        &["crate::", "super::"]
    } else if file.contains('/') {
        &["crate::", "super::super::"]
    } else {
        &["crate::"]
    };
    for prefix in prefixes {
        for (at, _) in line.match_indices(prefix) {
            // In a macro it belongs to the callers. In `pub(super)` no colons would follow it.
            if line[..at].ends_with('$') {
                continue;
            }
            let rest = &line[at + prefix.len()..];
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            match rest.strip_prefix('{') {
                // `use crate::{a, b::C}`: the first part of each.
                Some(group) => found.extend(
                    group
                        .split('}')
                        .next()
                        .unwrap_or("")
                        .split(',')
                        .filter_map(|item| item.trim().split("::").next())
                        .filter(|name| !name.is_empty())
                        .map(str::to_owned),
                ),
                None => {
                    let name: String = rest.chars().take_while(|&c| is_name(c)).collect();
                    // Macros of the crate are called by its root.
                    if !rest[name.len()..].starts_with('!') {
                        found.push(name);
                    }
                }
            }
        }
    }
    found
}

// ------------------------------------------------------------------------- circles of imports

/// Pairs of parts of one folder of which the first uses the second, in a circle that is still to be
/// broken. A pair that is no longer part of a circle is an error.
const CIRCLES: &[(&str, &str)] = &[];

/// The modules of the crate by their paths, such as `queue::ring`. The root is the empty path.
struct Modules<'a> {
    texts: BTreeMap<Vec<String>, Vec<&'a str>>,
    /// For each module, the names that its own parts have, and which part.
    passed_on: BTreeMap<Vec<String>, BTreeMap<String, String>>,
}

impl<'a> Modules<'a> {
    fn new(sources: &'a [Source]) -> Self {
        let mut renamed = BTreeMap::new();
        for (file, text) in sources.iter().filter(|(file, _)| is_folder(file)) {
            let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
            let mut paths = Vec::new();
            for line in text.lines().map(str::trim) {
                if let Some((_, path)) = line.split_once("path = \"") {
                    paths.extend(path.split('"').next());
                }
                if let Some(name) = declared_module(line) {
                    renamed.extend(paths.drain(..).map(|path| (format!("{folder}/{path}"), name)));
                }
            }
        }
        let mut texts: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (file, text) in sources {
            let mut path: Vec<String> =
                file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            if is_folder(file) {
                path.pop();
            }
            let key = if file.contains('/') { file.clone() } else { format!("/{file}") };
            if let (Some(name), Some(last)) = (renamed.get(&key), path.last_mut()) {
                *last = (*name).to_owned();
            }
            texts.entry(path).or_default().push(text.as_str());
        }
        let modules: BTreeSet<Vec<String>> = texts.keys().cloned().collect();
        let passed_on = texts.iter().map(|(module, texts): (&Vec<String>, _)| {
            let uses = texts.iter().flat_map(|text| paths_in(module, text, &["use "]));
            let of_parts = uses.filter_map(|path| match path.strip_prefix(&module[..])? {
                [part, .., item]
                    if modules.contains(&[module, core::slice::from_ref(part)].concat()) =>
                {
                    Some((item.clone(), part.clone()))
                }
                _ => None,
            });
            (module.clone(), of_parts.collect())
        });
        let passed_on = passed_on.collect();
        Modules { texts, passed_on }
    }

    /// The deepest module on the way to an item. A name that a module only passes on leads to the
    /// part of the module that has it.
    fn resolve(&self, path: &[String]) -> Vec<String> {
        let deepest = (0..=path.len()).rev().find(|&n| self.texts.contains_key(&path[..n]));
        let (module, rest) = path.split_at(deepest.unwrap_or(0));
        let part = rest.first().and_then(|item| self.passed_on[module].get(item));
        [module, part.map_or(&[], core::slice::from_ref)].concat()
    }

    /// Pairs of parts of one folder of which the first uses the second, by their paths.
    fn edges(&self) -> BTreeSet<(Vec<String>, Vec<String>)> {
        let mut edges = BTreeSet::new();
        for (from, texts) in &self.texts {
            for path in texts.iter().flat_map(|text| paths_in(from, text, &["crate::", "super::"]))
            {
                let to = self.resolve(&path);
                let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if common < from.len() && common < to.len() {
                    edges.insert((from[..=common].to_vec(), to[..=common].to_vec()));
                }
            }
        }
        edges
    }

    /// The edges that are part of a circle.
    fn circles(&self) -> BTreeSet<(String, String)> {
        let edges = self.edges();
        let reaches = |from: &Vec<String>, goal: &Vec<String>| {
            let mut seen = BTreeSet::from([from]);
            let mut next = vec![from];
            while let Some(at) = next.pop() {
                next.extend(
                    edges.iter().filter(|(a, b)| a == at && seen.insert(b)).map(|(_, b)| b),
                );
            }
            seen.contains(goal)
        };
        let in_circle = edges.iter().filter(|(a, b)| reaches(b, a));
        in_circle.map(|(a, b)| (a.join("::"), b.join("::"))).collect()
    }
}

fn is_folder(file: &str) -> bool {
    file == "lib.rs" || file.ends_with("/mod.rs")
}

/// The name in `mod name;`.
fn declared_module(line: &str) -> Option<&str> {
    line.strip_suffix(';')?.rsplit_once("mod ").map(|(_, name)| name)
}

/// The paths of a text that start in one of these ways, from the root, each part of a group by
/// itself.
fn paths_in(module: &[String], text: &str, starts: &[&str]) -> Vec<Vec<String>> {
    let text: String = text.lines().map(|line| code(line).to_owned() + "\n").collect();
    let mut found = Vec::new();
    for start in starts {
        for (at, _) in text.match_indices(start) {
            let before = &text[..at];
            if before.ends_with('$')
                || before.ends_with("::")
                || before.ends_with(char::is_alphanumeric)
            {
                continue;
            }
            let from = if *start == "use " { &text[at + start.len()..] } else { &text[at..] };
            expand(Vec::new(), from, &mut found);
        }
    }
    let absolute = |path: Vec<String>| match path.first().map(String::as_str) {
        Some("crate") => path[1..].to_vec(),
        Some("self") => [module, &path[1..]].concat(),
        Some("super") => {
            let ups = path.iter().take_while(|part| *part == "super").count();
            [&module[..module.len().saturating_sub(ups)], &path[ups..]].concat()
        }
        _ => [module, &path[..]].concat(),
    };
    found.into_iter().map(absolute).collect()
}

/// Appends the paths of `a::{b, c::d}` and returns what follows.
fn expand<'t>(mut path: Vec<String>, text: &'t str, found: &mut Vec<Vec<String>>) -> &'t str {
    let mut rest = text.trim_start();
    loop {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        path.push(rest[..end].to_owned());
        rest = &rest[end..];
        let Some(after) = rest.strip_prefix("::") else { break };
        rest = after;
        if let Some(group) = rest.strip_prefix('{') {
            rest = group.trim_start();
            while !rest.is_empty() && !rest.starts_with('}') {
                rest = expand(path.clone(), rest, found);
                // An item's other name, and what stands between items.
                let next = rest.find([',', '}']).unwrap_or(rest.len());
                rest = rest[next..].trim_start_matches(',').trim_start();
            }
            return rest.strip_prefix('}').unwrap_or(rest);
        }
    }
    found.push(path);
    rest
}

/// The edges that are part of a circle. What stands in for a module in the loom model is left out.
fn circles(sources: &[Source]) -> BTreeSet<(String, String)> {
    let built = sources.iter().filter(|(file, _)| !file.ends_with("model.rs"));
    Modules::new(&built.cloned().collect::<Vec<_>>()).circles()
}

/// Parts of one folder do not use each other in a circle. (A part may use its folder, and a folder
/// its parts.)
#[test]
fn imports_form_no_circle() {
    let found = circles(&sources("src"));
    let expected = CIRCLES.iter().map(|&(from, to)| (from.to_owned(), to.to_owned())).collect();
    assert_eq!(found, expected, "an edge that is gone must leave the list as well");
}

#[test]
fn planted_circles_are_found() {
    let planted = |file: &str, line: &str| {
        let mut sources = sources("src");
        let before = circles(&sources);
        let (_, text) = sources.iter_mut().find(|(name, _)| name == file).unwrap();
        text.push_str(&format!("\n{line}\n"));
        circles(&sources).difference(&before).count()
    };
    // The other edge is there already: by the root, by the folder, in a group.
    assert!(planted("lock.rs", "use crate::condition::Condition;") > 0);
    assert!(planted("queue/ring.rs", "use super::priority::PriorityQueue;") > 0);
    assert!(planted("lock.rs", "use crate::{event::Event, condition::{\n    Condition,\n}};") > 0);
    // Through a name that the folder passes on.
    assert!(planted("queue/ring.rs", "use super::PriorityQueue;") > 0);
    // Inside an expression.
    assert!(planted("lock.rs", "fn f() { crate::condition::g() }") > 0);
    // Through other modules.
    assert!(planted("deadline.rs", "use crate::segment::contains;") > 2);
    // No circle.
    assert_eq!(planted("condition.rs", "use crate::lock::Lock; // crate::shared::Shared"), 0);
    assert_eq!(planted("queue/mod.rs", "use crate::queue::ring::Slot;"), 0);
    assert_eq!(planted("queue/ring.rs", "use super::Queue;"), 0);
}

// ------------------------------------------------------------------------------------ layers

/// All that is wrong, in words.
fn violations(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    let lib = sources.iter().find(|(file, _)| file == "lib.rs").map_or("", |(_, text)| text);
    let heights = drawing(lib);
    let declared = lib.lines().filter_map(|line| {
        let line = line.trim_start_matches("pub ").strip_prefix("mod ")?;
        line.strip_suffix(';')
    });
    let declared: Vec<&str> = declared.collect();
    for module in &declared {
        if !heights.contains_key(*module) {
            wrong.push(format!("lib.rs: the drawing lacks `{module}`"));
        }
    }
    for module in heights.keys() {
        if !declared.contains(&module.as_str()) {
            wrong.push(format!("lib.rs: the drawing shows `{module}`, which is not there"));
        }
    }
    for (file, text) in sources.iter().filter(|(file, _)| file != "lib.rs") {
        let from = module_of(file);
        let Some(height) = heights.get(from) else {
            wrong.push(format!("{file}: no layer"));
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            for to in references(file, code(line)) {
                match heights.get(&to) {
                    None => wrong.push(format!("{file}:{}: `{to}` is no module", number + 1)),
                    Some(other) if other > height => {
                        wrong.push(format!("{file}:{}: up to `{to}`", number + 1));
                    }
                    Some(_) => {}
                }
            }
        }
    }
    for (file, text) in sources
        .iter()
        .filter(|(file, _)| OUTSIDERS.iter().any(|outsider| file.starts_with(outsider)))
    {
        for (number, line) in text.lines().enumerate() {
            let used = code(line).split("crate::").skip(1);
            for what in used.filter(|used| !FOR_OUTSIDERS.iter().any(|may| used.starts_with(may))) {
                wrong.push(format!("{file}:{}: `{what}` has no public name", number + 1));
            }
        }
    }
    for rule in &RULES {
        let mut used = vec![false; rule.exceptions.len()];
        for (file, text) in sources {
            let at_home = rule
                .home
                .iter()
                .any(|home| file == home || home.ends_with('/') && file.starts_with(home));
            if at_home {
                continue;
            }
            let exception = rule.exceptions.iter().position(|(name, _)| file == name);
            for (number, line) in text.lines().enumerate() {
                if !code(line).contains(rule.pattern) {
                    continue;
                }
                match exception {
                    Some(i) => used[i] = true,
                    None => wrong.push(format!("{file}:{}: `{}`", number + 1, rule.pattern)),
                }
            }
        }
        for ((file, reason), _) in rule.exceptions.iter().zip(&used).filter(|(_, used)| !**used) {
            wrong.push(format!("{file}: has no `{}` any more ({reason})", rule.pattern));
        }
    }
    wrong
}

#[test]
fn every_edge_points_down() {
    let wrong = violations(&sources("src"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The check itself: it finds what is planted, and nothing in what is only said in comments.
#[test]
fn planted_violations_are_found() {
    let planted = |file: &str, line: &str| {
        let mut sources = sources("src");
        match sources.iter_mut().find(|(name, _)| name == file) {
            Some((_, text)) => text.push_str(&format!("\n{line}\n")),
            None => sources.push((file.to_owned(), line.to_owned())),
        }
        violations(&sources)
    };
    let wrong = [
        ("sync.rs", "use crate::wait::WaitWord;"),
        ("sys/futex.rs", "    crate::segment::identify(0);"),
        ("sys/futex.rs", "use super::super::lock::Lock;"),
        ("sys/mod.rs", "use super::queue;"),
        ("wait/mod.rs", "use crate::{sync::fence, event::Event};"),
        ("lock.rs", "use crate::queue::Queue;"),
        ("event.rs", "use crate::Lock;"),
        ("queue/ring.rs", "use crate::log::Journal;"),
        ("shared_model.rs", "use crate::any_error::Error;"),
        ("novelty.rs", "use crate::sync;"),
        ("lock.rs", "    let r = unsafe { libc::getpid() };"),
        ("queue/mod.rs", "use core::sync::atomic::AtomicU32;"),
        ("queue/in_flight.rs", "#[cfg(outlast_loom)]"),
        ("process/wire.rs", "    let r = unsafe { libc::fork() };"),
        ("shared.rs", "use crate::process::Process;"),
        ("process/stop.rs", "use crate::segment::identify;"),
        ("pool/segment.rs", "use crate::wait::signal::Signal;"),
        ("pool/scheduler.rs", "use crate::queue::ring::Slot;"),
        ("lib.rs", "mod novelty;"),
    ];
    for (file, line) in wrong {
        assert_eq!(planted(file, line).len(), 1, "{file}: {line}: {:?}", planted(file, line));
    }
    let right = [
        ("sync.rs", "// see crate::wait, libc:: and #[cfg(x)]"),
        ("sys/futex.rs", "/// as crate::lock::Lock does"),
        ("lock.rs", "use crate::segment::contains; // not crate::queue"),
        ("event.rs", "use crate::lock::Lock;"), // the same layer
        ("shareable.rs", "impl $crate::Shareable for X {}"),
        ("queue/mod.rs", "pub(super) fn f() {}"),
        ("sys/robust_futex.rs", "let r = unsafe { libc::getpid() };"),
        ("queue/in_flight.rs", "use super::ring::Slot;"),
        ("pool/segment.rs", "use crate::shared::Shared;"),
    ];
    for (file, line) in right {
        assert!(planted(file, line).is_empty(), "{file}: {line}: {:?}", planted(file, line));
    }
    // An exception that is not needed any more.
    let mut sources = sources("src");
    sources.retain(|(file, _)| file != "segment/header.rs");
    assert_eq!(violations(&sources).len(), 1);
}

#[test]
fn the_drawing_is_read() {
    let text = "// The layers, top to bottom\n//\n//   c  d   what they do\n//   b/{x,y}   more\n//   a   base\nmod a;";
    let heights = drawing(text);
    let expected = [("a", 0), ("b", 1), ("c", 2), ("d", 2)];
    assert_eq!(heights, expected.map(|(name, height)| (name.to_owned(), height)).into());
}
