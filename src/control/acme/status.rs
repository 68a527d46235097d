//! What the operator sees of the orders.

/// What is known about the certificate that the server orders. Times are in seconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::control) struct Status {
    pub(in crate::control) domains: Vec<String>,
    pub(in crate::control) directory: String,
    pub(in crate::control) state: State,
    /// When the certificate in the state directory expires.
    pub(in crate::control) expires: Option<u64>,
    /// When the server orders next: the renewal, or the next try.
    pub(in crate::control) next_try: Option<u64>,
    pub(in crate::control) last_success: Option<u64>,
    /// Why the last order failed, and when; `None` after a success.
    pub(in crate::control) last_error: Option<(u64, String)>,
    /// The failures since the last success.
    pub(in crate::control) failures: u32,
}

/// What the server does about its certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::control) enum State {
    /// It orders one.
    #[default]
    Ordering,
    /// There is one, and it is renewed later.
    Waiting,
    /// The last order failed, and the next one follows.
    Failed,
}

impl State {
    /// Every state.
    pub(in crate::control) const ALL: [Self; 3] = [Self::Ordering, Self::Waiting, Self::Failed];

    /// Returns the name in `GET /v1/certificates` and in the metrics.
    pub(in crate::control) fn as_str(self) -> &'static str {
        match self {
            Self::Ordering => "ordering",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
        }
    }
}

/// The status, and the numbers of orders since the start.
#[derive(Clone, Debug, Default)]
pub(in crate::control) struct Published {
    /// `None` without `[tls.acme]`.
    pub(in crate::control) status: Option<Status>,
    pub(in crate::control) succeeded: u64,
    pub(in crate::control) failed: u64,
}
