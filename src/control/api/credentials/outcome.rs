//! The outcomes of requests for credentials.

use std::cell::Cell;

use hyper::StatusCode;

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Issued,
    /// The URLs of the relays that drain were sent.
    Draining,
    BadRequest,
    UnknownKey,
    OriginDenied,
    UserDenied,
    KeyLimited,
    SourceLimited,
    /// No key is configured.
    NotConfigured,
    /// There is no secret or no address.
    Unavailable,
}

impl Outcome {
    const ALL: [Self; 10] = [
        Self::Issued,
        Self::Draining,
        Self::BadRequest,
        Self::UnknownKey,
        Self::OriginDenied,
        Self::UserDenied,
        Self::KeyLimited,
        Self::SourceLimited,
        Self::NotConfigured,
        Self::Unavailable,
    ];

    /// Returns the label of a metric.
    fn label(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Draining => "draining",
            Self::BadRequest => "bad-request",
            Self::UnknownKey => "unknown-key",
            Self::OriginDenied => "origin-denied",
            Self::UserDenied => "user-denied",
            Self::KeyLimited => "key-limited",
            Self::SourceLimited => "source-limited",
            Self::NotConfigured => "not-configured",
            Self::Unavailable => "unavailable",
        }
    }

    /// Returns the status of the response.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Issued => StatusCode::CREATED,
            Self::Draining => StatusCode::OK,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::UnknownKey => StatusCode::UNAUTHORIZED,
            Self::OriginDenied | Self::UserDenied => StatusCode::FORBIDDEN,
            Self::KeyLimited | Self::SourceLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::NotConfigured => StatusCode::NOT_FOUND,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// The number of requests with each outcome.
#[derive(Debug, Default)]
pub(super) struct Counts([Cell<u64>; Outcome::ALL.len()]);

impl Counts {
    pub(super) fn add(&self, outcome: Outcome) {
        if let Some(count) = self.0.get(outcome as usize) {
            count.update(|count| count + 1);
        }
    }

    /// Returns the label and the count of each outcome.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Outcome::ALL.iter().zip(&self.0).map(|(outcome, count)| (outcome.label(), count.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_a_count_of_its_own() {
        let counts = Counts::default();
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
            (0..=index).for_each(|_| counts.add(outcome));
        }
        let found: Vec<u64> = counts.iter().map(|(_, count)| count).collect();
        assert_eq!(found, (1..=10).collect::<Vec<_>>());
    }
}
