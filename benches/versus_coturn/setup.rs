//! What a benchmark needs before it starts a server.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::load::Outcome;
use crate::output::print_progress;

/// Builds the server in a target directory of its own, as `cargo build --release` does. The server that `cargo bench`
/// builds has the additional features that the dev-dependencies enable in tokio and others, so its cost differs.
pub(crate) fn build_server() -> Outcome<PathBuf> {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("shipped");
    print_progress("building the server as `cargo build --release` does");
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--locked", "--quiet", "--bin", "turnserver", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()?;
    if built.success() { Ok(target.join("release/turnserver")) } else { Err("the server could not be built".into()) }
}

/// A temporary directory, removed on drop.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn make() -> Outcome<Self> {
        let path = std::env::temp_dir().join(format!("turn-bench-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
