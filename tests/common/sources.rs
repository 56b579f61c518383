//! The source files of the package, for tests that read them.
use std::fs;
use std::path::{Path, PathBuf};

/// A source file: its path under the folder, and its text.
pub(crate) type Source = (String, String);

/// The source files in a folder of the package, sorted by path.
pub(crate) fn sources(folder: &str) -> Vec<Source> {
    fn collect(folder: &Path, to: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, to);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                to.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    paths.into_iter().map(read).collect()
}
