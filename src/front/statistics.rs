//! What the front counts. Only its thread writes; the pages of metrics read at any time.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::rules::Destination;

macro_rules! ends {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// How a connection to a front ended. Each accepted connection ends in exactly one of these ways.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum End {
            $($(#[doc = $doc])+ $name,)+
        }

        impl End {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),+];

            /// The name in logs and counters.
            pub(crate) fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }
        }
    };
}

ends! {
    /// A worker serves it.
    ToRelay = "handed-to-relay",
    /// The HTTP server serves it.
    ToHttp = "handed-to-http",
    /// The visitor and the web site have both finished.
    Complete = "complete",
    /// The visitor's side broke, or ended before it was known where the connection belongs.
    ByVisitor = "broken-by-visitor",
    /// The web site's side broke.
    ByWebSite = "broken-by-web-site",
    /// The web site could not be reached.
    Unreachable = "web-site-unreachable",
    /// This process had too many open files to connect to the web site.
    OutOfFiles = "too-many-open-files",
    /// No data came in either direction for the idle timeout.
    Idle = "idle",
    /// The first bytes did not come in time.
    Late = "first-bytes-late",
    /// The ClientHello was too long.
    TooLong = "client-hello-too-long",
    /// A connection of a proxy did not begin with a PROXY header.
    ProxyHeaderMissing = "proxy-header-missing",
    /// A connection of a proxy began with a PROXY header that is not valid.
    ProxyHeaderMalformed = "proxy-header-malformed",
    /// A connection began with a PROXY header, although its source is not a proxy.
    ProxyHeaderUnexpected = "proxy-header-unexpected",
    /// The limit of connections was reached. This was the oldest of the source with the most of them.
    Evicted = "evicted",
    /// The server stopped.
    Stopped = "server-stopped",
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// The directions of data between visitors and the web site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    ToWebSite,
    ToVisitor,
}

impl Direction {
    pub(crate) const ALL: [Self; 2] = [Self::ToWebSite, Self::ToVisitor];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::ToWebSite => "to_web_site",
            Self::ToVisitor => "to_visitor",
        }
    }
}

/// The counters of all fronts.
#[derive(Debug)]
pub(crate) struct Statistics {
    accepted: AtomicU64,
    accept_failed: AtomicU64,
    /// Connections that were accepted for a destination, by destination.
    decided: [AtomicU64; 3],
    ended: [AtomicU64; End::ALL.len()],
    bytes: [AtomicU64; 2],
    open: AtomicU64,
    /// Those of `open` that are connected to the web site.
    with_web_site: AtomicU64,
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            accepted: AtomicU64::default(),
            accept_failed: AtomicU64::default(),
            decided: Default::default(),
            ended: std::array::from_fn(|_| AtomicU64::default()),
            bytes: Default::default(),
            open: AtomicU64::default(),
            with_web_site: AtomicU64::default(),
        }
    }
}

impl Statistics {
    pub(super) fn count_accepted(&self) {
        self.accepted.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
    }

    pub(super) fn count_accept_failed(&self) {
        self.accept_failed.fetch_add(1, Relaxed);
    }

    pub(super) fn count_decided(&self, destination: Destination) {
        let [relay, http, web] = &self.decided;
        let counter = match destination {
            Destination::Relay => relay,
            Destination::Http | Destination::Challenge => http,
            Destination::Web => web,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn count_ended(&self, end: End) {
        self.open.fetch_sub(1, Relaxed);
        if let Some((_, counter)) = End::ALL.iter().zip(&self.ended).find(|(own, _)| **own == end) {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn count_bytes(&self, direction: Direction, bytes: usize) {
        let [to_web_site, to_visitor] = &self.bytes;
        let counter = match direction {
            Direction::ToWebSite => to_web_site,
            Direction::ToVisitor => to_visitor,
        };
        counter.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts a connection to the web site for as long as the result lives.
    pub(super) fn count_web_site(&self) -> impl Drop + '_ {
        self.with_web_site.fetch_add(1, Relaxed);
        Counted(&self.with_web_site)
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    pub(crate) fn accept_failed(&self) -> u64 {
        self.accept_failed.load(Relaxed)
    }

    pub(crate) fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    pub(crate) fn with_web_site(&self) -> u64 {
        self.with_web_site.load(Relaxed)
    }

    pub(crate) fn decided(&self) -> [(&'static str, u64); 3] {
        let [relay, http, web] = &self.decided;
        [("relay", relay.load(Relaxed)), ("http", http.load(Relaxed)), ("web", web.load(Relaxed))]
    }

    pub(crate) fn ended(&self) -> impl Iterator<Item = (&'static str, u64)> {
        End::ALL.iter().zip(&self.ended).map(|(end, count)| (end.label(), count.load(Relaxed)))
    }

    pub(crate) fn bytes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Direction::ALL.iter().zip(&self.bytes).map(|(direction, bytes)| (direction.label(), bytes.load(Relaxed)))
    }
}

struct Counted<'a>(&'a AtomicU64);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
