//! Comments and docs end at column 100, as the code does.
#![cfg(not(outlast_loom))]
#[path = "common/sources.rs"]
mod sources;

use sources::{Source, sources};

/// The last column that a comment may reach.
const COLUMNS: usize = 100;

/// The folders with sources of the package.
const FOLDERS: [&str; 4] = ["src", "tests", "benches", "examples"];

/// Where the comment of a line begins, in bytes. (A character literal that is a quotation mark
/// would mislead this function; no line that is too long has one.)
fn comment(line: &str) -> Option<usize> {
    let is_code =
        |at: &usize| line[..*at].replace("\\\"", "").matches('"').count().is_multiple_of(2);
    line.match_indices("//").map(|(at, _)| at).find(is_code)
}

/// The numbers of the lines whose comments are too long. Rows of tables, lines with a link, and
/// the code of examples in docs may be longer.
fn too_long(text: &str) -> Vec<usize> {
    let mut in_example = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let Some(comment) = comment(line).map(|at| &line[at..]) else {
            in_example = false;
            continue;
        };
        let words = comment.trim_start_matches(['/', '!']).trim_start();
        if words.starts_with("```") {
            in_example = !in_example;
        }
        let may_be_longer = in_example || words.starts_with('|') || words.contains("://");
        if line.chars().count() > COLUMNS && !may_be_longer {
            found.push(number);
        }
    }
    found
}

fn places(sources: &[Source]) -> Vec<String> {
    let in_file = |(file, text): &Source| -> Vec<String> {
        too_long(text).into_iter().map(|line| format!("{file}:{line}")).collect()
    };
    sources.iter().flat_map(in_file).collect()
}

#[test]
fn comments_end_at_column_100() {
    let sources: Vec<Source> = FOLDERS
        .iter()
        .flat_map(|folder| {
            let in_folder = move |(file, text)| (format!("{folder}/{file}"), text);
            sources(folder).into_iter().map(in_folder)
        })
        .collect();
    assert!(sources.len() > 100, "only {} files were read", sources.len());
    let places = places(&sources);
    assert!(places.is_empty(), "comments longer than {COLUMNS} columns:\n{}", places.join("\n"));
}

/// The check itself: it finds what is planted, and nothing where a line may be longer.
#[test]
fn planted_lines_are_found() {
    let words = |len: usize| "word ".repeat(len / 5);
    let long = words(110);
    let wrong = [
        format!("// {long}"),
        format!("    /// {long}"),
        format!("//! {long}"),
        format!("let a = \"//\"; // {long}"),
        format!("/// ```\n/// code\n/// ```\n/// {long}"),
        // An example that is not closed ends with the comment.
        format!("/// ```\nfn f() {{}}\n/// {long}"),
    ];
    for text in wrong {
        let lines = text.lines().count();
        assert_eq!(too_long(&text), [lines], "{text}");
    }
    let right = [
        format!("// {}", words(95)),
        format!("//! | {long} |"),
        format!("/// See <https://example.org>. {long}"),
        format!("/// ```\n/// {long}\n/// ```"),
        format!("let a = \"// {long}\";"),
        format!("let a = \"{long}\";"),
    ];
    for text in right {
        assert!(too_long(&text).is_empty(), "{text}");
    }
}
