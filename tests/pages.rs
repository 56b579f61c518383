//! The pages of the documentation that are files of their own: the README and `src/*.md`.
#![cfg(not(outlast_loom))]
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The last column of prose. Rows of tables and definitions of links may be longer.
const PROSE: usize = 100;
/// The last column of code: a longer line scrolls on a page that is 1,280 pixels wide.
const CODE: usize = 94;

/// The pages: their names and their texts.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![root.join("README.md"), root.join("CHANGELOG.md")];
    let sources = fs::read_dir(root.join("src")).unwrap().map(|entry| entry.unwrap().path());
    paths.extend(sources.filter(|path| path.extension().is_some_and(|end| end == "md")));
    let name = |path: &Path| path.strip_prefix(root).unwrap().display().to_string();
    paths.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// The numbers of the lines that are too long. Lines of code that rustdoc hides may be longer.
fn too_long(text: &str) -> Vec<usize> {
    let mut in_code = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with("```") {
            in_code = !in_code;
        }
        let most = match line.trim_start() {
            hidden if in_code && hidden.starts_with("# ") => usize::MAX,
            _ if in_code => CODE,
            row if row.starts_with('|') => usize::MAX,
            _ if is_definition(line) => usize::MAX,
            _ => PROSE,
        };
        if line.chars().count() > most {
            found.push(number);
        }
    }
    found
}

fn is_definition(line: &str) -> bool {
    line.starts_with('[') && line.contains("]: ")
}

/// The names of the links that a text defines.
fn definitions<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    lines
        .filter(|line| is_definition(line))
        .filter_map(|line| line[1..].split(']').next())
        .collect()
}

#[test]
fn no_line_is_too_long() {
    for (name, text) in pages() {
        let lines = too_long(&text);
        assert!(lines.is_empty(), "{name}: lines {lines:?}");
    }
}

#[test]
fn planted_lines_are_found() {
    let words = |len: usize| "word ".repeat(len / 5);
    assert_eq!(too_long(&format!("a\n{}\n", words(105))), [2]);
    assert_eq!(too_long(&format!("```\n{}\n```\n", words(95))), [2]);
    for right in [format!("| {} |", words(200)), format!("```\n# {}\n```", words(200)), words(100)]
    {
        assert!(too_long(&right).is_empty(), "{right}");
    }
}

/// The README leads to files, the crate docs to items: `src/lib.rs` defines every link of the
/// README once more, before it includes the README.
#[test]
fn every_link_of_the_readme_has_a_target_in_the_crate_docs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let lib = fs::read_to_string(root.join("src/lib.rs")).unwrap();
    let in_readme = definitions(readme.lines());
    let docs = lib.lines().take_while(|line| !line.contains("README.md\")"));
    let in_lib = definitions(docs.filter_map(|line| {
        let end = line.rsplit_once("doc = \"").map(|(_, end)| end.trim_end_matches("\")]"));
        end.or_else(|| line.strip_prefix("//! "))
    }));
    assert!(in_readme.len() > 40, "only {} links were found", in_readme.len());
    assert_eq!(in_readme, in_lib);
    let mut relative = readme.match_indices("](").map(|(at, _)| &readme[at + 2..]);
    if let Some(target) = relative.find(|target| !target.starts_with('#')) {
        panic!("a link without a definition: {}", target.split(')').next().unwrap_or(target));
    }
}
