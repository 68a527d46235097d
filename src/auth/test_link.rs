//! The users of the test page. Their credentials have a secret of their own, so no application can make one.

/// A test link: one credential of the test page. Its allocations reach only relayed transport addresses of this server,
/// relay a limited amount of data, and end when the credential expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestLink {
    place: u8,
}

const PREFIX: &str = "test-link-";

impl TestLink {
    /// The greatest number of links at a time.
    pub const PLACES: usize = 64;

    /// The greatest number of allocations of one link.
    pub const ALLOCATIONS: u32 = 32;

    /// Returns the link at a place below [`PLACES`](Self::PLACES).
    #[must_use]
    pub fn at(place: usize) -> Option<Self> {
        let place = u8::try_from(place).ok().filter(|place| usize::from(*place) < Self::PLACES)?;
        Some(Self { place })
    }

    /// Returns its place.
    #[must_use]
    pub fn place(self) -> usize {
        usize::from(self.place)
    }

    /// Returns the name of its user: `test-link-PLACE-ID`. `id` is different for each link that had the place.
    #[must_use]
    pub fn user(self, id: &str) -> String {
        format!("{PREFIX}{}-{id}", self.place)
    }

    /// Returns the link whose user has this name.
    #[must_use]
    pub fn of_user(name: &str) -> Option<Self> {
        let (place, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
        Self::at(place.parse().ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_user_has_the_place_of_its_link() {
        for place in [0, 9, TestLink::PLACES - 1] {
            let link = TestLink::at(place).unwrap();
            assert_eq!(link.place(), place);
            assert_eq!(TestLink::of_user(&link.user("k-7")), Some(link));
        }
        assert_eq!(TestLink::at(TestLink::PLACES), None);
        for other in ["", "alice", "test-link-", "test-link-1", "test-link-64-a", "test-link--1-a", "a-test-link-1-a"] {
            assert_eq!(TestLink::of_user(other), None, "{other}");
        }
    }
}
