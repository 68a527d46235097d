//! The program of the relay.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Returns the program, which is built first: Cargo builds only the programs of the package under test.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut build = Command::new(env!("CARGO"));
        build.current_dir(root).args(["build", "--quiet", "-p", "turnserver", "--bin", "turnserver"]);
        let profile = if cfg!(debug_assertions) {
            "debug"
        } else {
            build.arg("--release");
            "release"
        };
        assert!(build.arg("--target-dir").arg(target).status().unwrap().success(), "the relay is not built");
        target.join(profile).join("turnserver")
    })
}
