//! Lists the pages, so that the binary contains them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let pages = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("pages");
    let mut files = Vec::new();
    collect(&pages, &mut files)?;
    files.sort();
    let mut list = String::from("[\n");
    for file in files {
        let name = file.strip_prefix(&pages).map_err(io::Error::other)?;
        writeln!(list, "    ({:?}, include_bytes!({file:?})),", name.display().to_string())
            .map_err(io::Error::other)?;
    }
    list.push_str("]\n");
    let output = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("pages.rs");
    fs::write(output, list)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    // Cargo looks for new files only in directories that it knows.
    #[allow(clippy::print_stdout, reason = "this is how a build script speaks to Cargo")]
    {
        println!("cargo::rerun-if-changed={}", directory.display());
    }
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
