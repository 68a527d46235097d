//! The test links of this run, and the results of their tests.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::auth::{KeyHash, TestLink};

/// The results that are kept. A further one replaces the oldest.
const RESULTS: usize = 100;
/// The results that one link may send: the page can repeat the test.
pub(super) const RESULTS_PER_LINK: u32 = 5;
/// The time in which a page may send a result after its link has expired, in seconds. It then tells why it failed.
const LATE: u64 = 600;
/// A page is not started in the last seconds of its link, because the test would not come to its end.
pub(super) const LAST_START: u64 = 30;
/// How often the same page may start, in case a response gets lost.
const STARTS: u32 = 16;

/// A link, from when it is made until another one takes its place.
#[derive(Debug)]
struct Link {
    id: String,
    token: KeyHash,
    /// In seconds since the Unix epoch.
    expires: u64,
    /// The key with which its page sends results, once the page has been started.
    results_key: Option<KeyHash>,
    starts: u32,
    results: u32,
}

impl Link {
    /// Returns the username of its credential.
    fn username(&self, link: TestLink) -> String {
        format!("{}:{}", self.expires, link.user(&self.id))
    }
}

/// A result that a page has sent.
#[derive(Clone, Debug)]
pub(super) struct TestResult {
    pub(super) link: String,
    /// In seconds since the Unix epoch.
    pub(super) received: u64,
    /// The client, as the settings for privacy show it.
    pub(super) client: Option<String>,
    /// In JSON. A value may take more than ten times as much memory.
    pub(super) report: Box<str>,
}

/// Why a link cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// There is no such link, or another one has its place.
    Unknown,
    Expired,
    /// The operator has revoked its username.
    Revoked,
    /// Another page has used it.
    Used,
    /// It has sent as many results as a link may send.
    Exhausted,
}

/// A link that a page may use now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Usable {
    pub(super) link: TestLink,
    pub(super) id: String,
    pub(super) expires: u64,
    /// Whether its page starts for the first time.
    pub(super) is_first: bool,
}

/// Whether the operator has revoked a username.
type IsRevoked<'r> = &'r dyn Fn(&str) -> bool;

#[derive(Debug)]
pub(super) struct Links {
    places: [Option<Link>; TestLink::PLACES],
    results: VecDeque<TestResult>,
}

impl Default for Links {
    fn default() -> Self {
        Self { places: [const { None }; TestLink::PLACES], results: VecDeque::new() }
    }
}

impl Links {
    /// Whether there was a link in this run.
    pub(super) fn were_made(&self) -> bool {
        self.places.iter().any(Option::is_some)
    }

    /// Makes a link, in a free place or that of the link that expired first. `None` if no place is free and every link is
    /// valid.
    pub(super) fn make(
        &mut self,
        id: &str,
        token: &[u8],
        expires: u64,
        now: u64,
        is_revoked: IsRevoked<'_>,
    ) -> Option<TestLink> {
        let is_free = |(place, link): &(usize, &mut Option<Link>)| match (link, TestLink::at(*place)) {
            (Some(link), Some(of)) => link.expires <= now || is_revoked(&link.username(of)),
            (_, of) => of.is_some(),
        };
        let places = self.places.iter_mut().enumerate().filter(is_free);
        // `None` is less than any time, so a free place is preferred.
        let (place, link) = places.min_by_key(|(_, link)| link.as_ref().map(|link| link.expires))?;
        let token = KeyHash::of(token);
        *link = Some(Link { id: id.to_owned(), token, expires, results_key: None, starts: 0, results: 0 });
        TestLink::at(place)
    }

    /// Starts the page of the link with this token. `key` is the key for its results. The same page may start again: the
    /// response may have been lost.
    pub(super) fn start(
        &mut self,
        token: &[u8],
        key: &[u8],
        now: u64,
        is_revoked: IsRevoked<'_>,
    ) -> Result<Usable, Unusable> {
        let token = KeyHash::of(token);
        let (usable, link) = self.find(|link| link.token == token)?;
        let key = KeyHash::of(key);
        let is_of_another = link.results_key.as_ref().is_some_and(|own| *own != key);
        if link.expires <= now + LAST_START {
            Err(Unusable::Expired)
        } else if is_revoked(&link.username(usable.link)) {
            Err(Unusable::Revoked)
        } else if is_of_another || link.starts == STARTS {
            Err(Unusable::Used)
        } else {
            link.results_key = Some(key);
            link.starts += 1;
            Ok(usable)
        }
    }

    /// Returns the link of the page with this key.
    pub(super) fn of_page(&mut self, key: &[u8], now: u64, is_revoked: IsRevoked<'_>) -> Result<Usable, Unusable> {
        let key = KeyHash::of(key);
        let (usable, link) = self.find(|link| link.results_key.as_ref() == Some(&key))?;
        if link.expires <= now {
            Err(Unusable::Expired)
        } else if is_revoked(&link.username(usable.link)) {
            Err(Unusable::Revoked)
        } else {
            Ok(usable)
        }
    }

    /// Keeps a result that a page with this key sends.
    pub(super) fn keep(
        &mut self,
        key: &[u8],
        client: Option<String>,
        report: &Value,
        now: u64,
    ) -> Result<Usable, Unusable> {
        let key = KeyHash::of(key);
        let (usable, link) = self.find(|link| link.results_key.as_ref() == Some(&key))?;
        if link.expires.saturating_add(LATE) <= now {
            return Err(Unusable::Expired);
        }
        if link.results == RESULTS_PER_LINK {
            return Err(Unusable::Exhausted);
        }
        link.results += 1;
        if self.results.len() == RESULTS {
            self.results.pop_front();
        }
        let report = report.to_string().into();
        self.results.push_back(TestResult { link: usable.id.clone(), received: now, client, report });
        Ok(usable)
    }

    /// Returns the results, the oldest first.
    pub(super) fn results(&self) -> impl Iterator<Item = &TestResult> {
        self.results.iter()
    }

    fn find(&mut self, is_wanted: impl Fn(&Link) -> bool) -> Result<(Usable, &mut Link), Unusable> {
        let mut links = self.places.iter_mut().enumerate().filter_map(|(place, link)| Some((place, link.as_mut()?)));
        let (place, link) = links.find(|(_, link)| is_wanted(link)).ok_or(Unusable::Unknown)?;
        let place = TestLink::at(place).ok_or(Unusable::Unknown)?;
        let (id, expires, is_first) = (link.id.clone(), link.expires, link.starts == 0);
        Ok((Usable { link: place, id, expires, is_first }, link))
    }
}

/// Returns a text of random bytes that needs no escaping in a URL.
pub(super) fn random_text<const BYTES: usize>() -> Result<Zeroizing<String>, getrandom::Error> {
    let mut bytes = Zeroizing::new([0; BYTES]);
    getrandom::getrandom(&mut *bytes)?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const NONE: IsRevoked<'static> = &|_| false;

    #[test]
    fn a_link_starts_one_page_until_it_expires() {
        let mut links = Links::default();
        assert!(!links.were_made());
        let link = links.make("a", b"token", NOW + 100, NOW, NONE).unwrap();
        assert_eq!(links.start(b"other", b"key", NOW, NONE), Err(Unusable::Unknown));
        assert_eq!(links.start(b"token", b"key", NOW + 70, NONE), Err(Unusable::Expired));
        let usable = |is_first| Ok(Usable { link, id: "a".to_owned(), expires: NOW + 100, is_first });
        for start in 0..STARTS {
            assert_eq!(links.start(b"token", b"key", NOW + 69, NONE), usable(start == 0));
        }
        assert_eq!(links.start(b"token", b"key", NOW + 69, NONE), Err(Unusable::Used));
        assert_eq!(links.start(b"token", b"other", NOW + 69, NONE), Err(Unusable::Used));
    }

    #[test]
    fn a_revoked_link_starts_no_page_and_leaves_its_place() {
        let mut links = Links::default();
        let link = links.make("a", b"token", NOW + 100, NOW, NONE).unwrap();
        for place in 1..TestLink::PLACES {
            links.make("b", &[u8::try_from(place).unwrap()], NOW + 100, NOW, NONE).unwrap();
        }
        let own = format!("{}:{}", NOW + 100, link.user("a"));
        let is_revoked = |username: &str| username == own;
        assert_eq!(links.start(b"token", b"key", NOW, &is_revoked), Err(Unusable::Revoked));
        links.start(b"token", b"key", NOW, NONE).unwrap();
        assert_eq!(links.of_page(b"key", NOW, &is_revoked), Err(Unusable::Revoked));
        assert_eq!(links.make("c", b"c", NOW + 200, NOW, NONE), None);
        assert_eq!(links.make("c", b"c", NOW + 200, NOW, &is_revoked), Some(link));
    }

    #[test]
    fn only_a_started_page_sends_results_and_not_for_ever() {
        let mut links = Links::default();
        links.make("a", b"token", NOW + 100, NOW, NONE).unwrap();
        let keep = |links: &mut Links, key: &[u8], now| links.keep(key, None, &json!({ "n": now }), now);
        assert_eq!(keep(&mut links, b"key", NOW), Err(Unusable::Unknown));
        assert_eq!(links.of_page(b"key", NOW, NONE), Err(Unusable::Unknown));
        links.start(b"token", b"key", NOW, NONE).unwrap();
        assert_eq!(links.of_page(b"token", NOW, NONE), Err(Unusable::Unknown));
        assert_eq!(links.of_page(b"key", NOW + 99, NONE).unwrap().id, "a");
        assert_eq!(links.of_page(b"key", NOW + 100, NONE), Err(Unusable::Expired));
        assert_eq!(keep(&mut links, b"token", NOW), Err(Unusable::Unknown));
        assert_eq!(keep(&mut links, b"key", NOW + 700), Err(Unusable::Expired));
        for _ in 0..RESULTS_PER_LINK {
            keep(&mut links, b"key", NOW + 699).unwrap();
        }
        assert_eq!(keep(&mut links, b"key", NOW + 699), Err(Unusable::Exhausted));
        assert_eq!(links.results().count(), 5);
    }

    #[test]
    fn results_and_links_are_bounded() {
        let mut links = Links::default();
        for place in 0..TestLink::PLACES {
            let link = links.make("a", &[u8::try_from(place).unwrap()], NOW + 100 - place as u64, NOW, NONE).unwrap();
            assert_eq!(link.place(), place);
        }
        assert_eq!(links.make("b", b"token", NOW + 200, NOW, NONE), None);
        // The one that expired first.
        let link = links.make("b", b"token", NOW + 200, NOW + 100, NONE).unwrap();
        assert_eq!(link.place(), TestLink::PLACES - 1);
        for byte in 0..25_u8 {
            links.start(&[byte], &[byte], NOW, NONE).unwrap();
            for _ in 0..RESULTS_PER_LINK {
                links.keep(&[byte], None, &json!(byte), NOW).unwrap();
            }
        }
        let kept: Vec<&str> = links.results().map(|result| &*result.report).collect();
        assert_eq!((kept.len(), kept[0], kept[RESULTS - 1]), (RESULTS, "5", "24"));
    }
}
