//! Reading of files whose path is configured or passed as an argument.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

/// The largest file that is read, in bytes. A configuration, a list of secrets or a certificate chain is far smaller.
const MAX_LENGTH: u64 = 1 << 20;

/// The byte order mark of UTF-8. Editors on Windows write it at the start of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The end of the text that the unit passes in place of a credential whose file is missing (`SetCredential=`). Without
/// that text, systemd would not start the service.
const MISSING_CREDENTIAL: &str = " did not exist when the service was started.";

/// Reads a regular file of at most 1 MiB, without a byte order mark at its start.
///
/// Reading from a named pipe could block forever, and a device may have no end.
///
/// # Errors
/// If the file cannot be read, is not a regular file, or is longer, or if the unit made it in place of a missing file.
pub fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    read_up_to(path, MAX_LENGTH)
}

/// Like [`read`], but the file may have up to `most` bytes.
///
/// # Errors
/// As [`read`].
pub fn read_up_to(path: &Path, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    // Some devices act when they are opened.
    check(&fs::metadata(path)?, most)?;
    // A file that is replaced by a named pipe in between must not block the open call.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let length = check(&file.metadata()?, most)?;
    let bytes = read_to_end(&file, length, most)?;
    missing_credential(&bytes).map_or(Ok(bytes), Err)
}

/// Returns the error if this is the text that the unit passes in place of a missing file.
fn missing_credential(text: &[u8]) -> Option<io::Error> {
    let missing = str::from_utf8(text).ok()?.trim_end().strip_prefix("# ")?.strip_suffix(MISSING_CREDENTIAL)?;
    (!missing.contains('\n')).then(|| {
        io::Error::other(format!(
            "{missing} did not exist when the service was started. Create it (or the file that a drop-in of the unit \
             names instead), and start the service again"
        ))
    })
}

/// Checks the type and the length of a file. Returns the length.
fn check(metadata: &fs::Metadata, most: u64) -> io::Result<u64> {
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if let Some(kind) = special(metadata.file_type()) {
        return Err(io::Error::other(format!("it is {kind}, not a regular file")));
    }
    if metadata.len() > most {
        return Err(too_long(most));
    }
    Ok(metadata.len())
}

fn special(kind: FileType) -> Option<&'static str> {
    if kind.is_file() {
        None
    } else if kind.is_fifo() {
        Some("a pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        Some("a device")
    }
}

fn too_long(most: u64) -> io::Error {
    io::Error::other(format!("it is longer than {} MiB", most >> 20))
}

fn read_to_end(file: &File, length: u64, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    // The whole length is allocated at once, because a growing vector leaves copies of secrets in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1));
    // The length of some files, for example in /proc, is reported as 0. A file may also grow.
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(too_long(most));
    }
    strip_byte_order_mark(&mut bytes);
    Ok(bytes)
}

/// Removes a byte order mark at the start of a text.
pub fn strip_byte_order_mark(text: &mut Vec<u8>) {
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    /// A path in a directory of this test, deleted when dropped.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("turnserver-file-{name}-{}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            Self(directory.join("file"))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.parent().unwrap());
        }
    }

    fn failure(path: &Path) -> String {
        read(path).unwrap_err().to_string()
    }

    /// Creates a named pipe.
    pub(crate) fn make_pipe(path: &Path) {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    }

    #[test]
    fn a_file_that_is_not_regular_is_an_error_and_is_not_opened() {
        let place = Place::new("special");
        // Opening a named pipe would block, because it has no writer.
        make_pipe(&place.0);
        assert_eq!(failure(&place.0), "it is a pipe, not a regular file");
        fs::remove_file(&place.0).unwrap();
        let _listener = UnixListener::bind(&place.0).unwrap();
        assert_eq!(failure(&place.0), "it is a socket, not a regular file");
        for device in ["/dev/zero", "/dev/null"] {
            assert_eq!(failure(Path::new(device)), "it is a device, not a regular file");
        }
        assert_eq!(read(&std::env::temp_dir()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(read(Path::new("/nonexistent")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    // A sparse file has the length of a configuration of 3 GB without its content.
    #[test]
    fn a_file_of_more_than_1_mib_is_an_error() {
        let place = Place::new("long");
        let file = File::create(&place.0).unwrap();
        for (length, accepted) in [(MAX_LENGTH, true), (MAX_LENGTH + 1, false), (3 << 30, false)] {
            file.set_len(length).unwrap();
            assert_eq!(read(&place.0).is_ok(), accepted, "{length}");
        }
        assert_eq!(failure(&place.0), "it is longer than 1 MiB");
    }

    #[test]
    fn a_file_whose_length_is_reported_as_0_is_read() {
        assert_eq!(fs::metadata("/proc/self/status").unwrap().len(), 0);
        assert!(!read(Path::new("/proc/self/status")).unwrap().is_empty());
    }

    #[test]
    fn the_text_that_replaces_a_missing_credential_is_an_error_that_names_the_file() {
        let place = Place::new("missing-credential");
        let unit = include_str!("../systemd/turnserver.service");
        let settings: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("SetCredential=")).collect();
        assert_eq!(settings.len(), 3);
        for setting in settings {
            let (name, text) = setting.split_once(':').unwrap();
            fs::write(&place.0, text).unwrap();
            let expected = format!("/etc/turnserver/{name} did not exist when the service was started. Create it");
            assert!(failure(&place.0).starts_with(&expected), "{}", failure(&place.0));
            // Any other content is used.
            for other in [format!("{text}\nsecret\n"), format!("# first\n{text}"), text.replace("# ", "")] {
                fs::write(&place.0, &other).unwrap();
                assert_eq!(*read(&place.0).unwrap(), other.as_bytes());
            }
        }
    }

    #[test]
    fn one_byte_order_mark_at_the_start_is_removed() {
        let place = Place::new("mark");
        for (content, expected) in [
            ("\u{feff}text", "text"),
            ("\u{feff}", ""),
            ("te\u{feff}xt", "te\u{feff}xt"),
            ("\u{feff}\u{feff}text", "\u{feff}text"),
        ] {
            fs::write(&place.0, content).unwrap();
            assert_eq!(*read(&place.0).unwrap(), expected.as_bytes());
        }
    }
}
