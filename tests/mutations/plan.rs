//! The entries of the list.

/// A fault to be planted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mutation {
    pub(crate) name: &'static str,
    /// The source file, from the root of the repository.
    pub(crate) file: &'static str,
    /// The text that `to` replaces. The file contains it exactly once.
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    /// The rule that the fault breaks, and why the rule exists.
    pub(crate) rule: &'static str,
    pub(crate) outcome: Outcome,
}

/// What is expected of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// Each of these tests fails.
    Caught { build: Build, target: &'static str, tests: &'static [&'static str] },
    /// The fault changes nothing that a test could notice. The text proves it.
    Equivalent(&'static str),
}

/// How the tests are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Build {
    Ordinary,
    /// With pauses at certain places: see `src/sys/hooks.rs`.
    Hooks,
    /// The models: see `tests/model`.
    Loom,
}

/// These tests of `tests/{target}` fail.
pub(crate) const fn ordinary(target: &'static str, tests: &'static [&'static str]) -> Outcome {
    Outcome::Caught { build: Build::Ordinary, target, tests }
}

/// These tests of `tests/{target}` fail in the build with pauses.
pub(crate) const fn hooks(target: &'static str, tests: &'static [&'static str]) -> Outcome {
    Outcome::Caught { build: Build::Hooks, target, tests }
}

/// These models fail.
pub(crate) const fn loom(tests: &'static [&'static str]) -> Outcome {
    Outcome::Caught { build: Build::Loom, target: "model", tests }
}

/// No test can notice the fault, for this reason.
pub(crate) const fn equivalent(reason: &'static str) -> Outcome {
    Outcome::Equivalent(reason)
}

impl Mutation {
    /// Returns `text` with the fault in it.
    pub(crate) fn planted(&self, text: &str) -> Result<String, String> {
        let found = places(text, self.from);
        let &[(start, end)] = found.as_slice() else {
            return Err(format!("`{}` is {} times in {}", self.from, found.len(), self.file));
        };
        let planted = format!("{}{}{}", &text[..start], self.to, &text[end..]);
        if planted == text { Err("changes nothing".to_owned()) } else { Ok(planted) }
    }
}

/// The places where `pattern` begins and ends. White space matches any white space.
fn places(text: &str, pattern: &str) -> Vec<(usize, usize)> {
    let mut words = pattern.split_whitespace();
    let Some(first) = words.next() else { return Vec::new() };
    let end_of = |start: usize| {
        let mut at = start + first.len();
        for word in words.clone() {
            let rest = text[at..].trim_start();
            let gap = text[at..].len() - rest.len();
            if gap == 0 || !rest.starts_with(word) {
                return None;
            }
            at += gap + word.len();
        }
        Some(at)
    };
    text.match_indices(first).filter_map(|(start, _)| Some((start, end_of(start)?))).collect()
}
