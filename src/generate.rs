//! Man pages and shell completions, for packages.

use std::path::PathBuf;
use std::{fs, io};

use clap::Subcommand;
use clap_complete::Shell;

/// What is generated.
#[derive(Debug, Subcommand)]
pub enum Generate {
    /// Write the man pages into a directory.
    Man {
        /// The directory, which is created if it is missing.
        directory: PathBuf,
    },
    /// Print the completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

impl Generate {
    /// Generates it for `command`.
    ///
    /// # Errors
    /// If a file or the output cannot be written.
    pub fn run(&self, mut command: clap::Command, output: &mut dyn io::Write) -> io::Result<()> {
        match self {
            Self::Man { directory } => {
                fs::create_dir_all(directory)?;
                clap_mangen::generate_to(command, directory)
            }
            Self::Completions { shell } => {
                let name = command.get_name().to_owned();
                // The generator panics if it cannot write.
                let mut script = Vec::new();
                clap_complete::generate(*shell, &mut command, name, &mut script);
                output.write_all(&script)
            }
        }
    }
}
