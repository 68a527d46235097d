//! The pages: HTML, style sheets and scripts, in the program or in a directory.

use std::borrow::Cow;
use std::path::{Component, Path, PathBuf};

/// The files of `pages`, with their paths in it.
static EMBEDDED: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// Where the pages come from.
#[derive(Clone, Debug)]
pub(crate) enum Pages {
    /// The program contains them.
    Embedded,
    /// A directory, which is read for each request.
    Directory(PathBuf),
}

/// A file of the pages.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) content_type: &'static str,
    pub(crate) content: Cow<'static, [u8]>,
}

impl Pages {
    /// Returns a file. `None` if there is none, or the path leads out of the pages.
    pub(crate) async fn get(&self, path: &str) -> Option<Page> {
        let content = match self {
            Self::Embedded => {
                let (_, content) = EMBEDDED.iter().find(|(name, _)| *name == path)?;
                Cow::Borrowed(*content)
            }
            Self::Directory(directory) => {
                let path = Path::new(path);
                if !path.components().all(|component| matches!(component, Component::Normal(_))) {
                    return None;
                }
                let path = directory.join(path);
                let read = tokio::task::spawn_blocking(move || std::fs::read(path));
                Cow::Owned(read.await.ok()?.ok()?)
            }
        };
        Some(Page { content_type: content_type(path)?, content })
    }
}

/// Returns the type of a file. `None` for other files than those of web pages.
fn content_type(path: &str) -> Option<&'static str> {
    let (_, extension) = path.rsplit_once('.')?;
    Some(match extension {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/vnd.microsoft.icon",
        "woff2" => "font/woff2",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_program_contains_the_pages() {
        let page = Pages::Embedded.get("room.html").await.unwrap();
        assert_eq!(page.content_type, "text/html; charset=utf-8");
        assert!(page.content.starts_with(b"<!"));
        assert!(Pages::Embedded.get("absent.html").await.is_none());
    }

    #[tokio::test]
    async fn a_directory_is_served_and_nothing_outside_of_it() {
        let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/pages"));
        let pages = Pages::Directory(directory);
        assert!(pages.get("index.html").await.is_some());
        for path in ["../README.md", "/etc/hostname", "a/../index.html", "", ".", "static"] {
            assert!(pages.get(path).await.is_none(), "{path}");
        }
    }
}
