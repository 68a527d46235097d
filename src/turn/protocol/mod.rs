//! The wire protocol: framing, authentication, one handler for each method, and responses.

pub(crate) mod channel_data;
pub(crate) mod channel_numbers;
pub(crate) mod control;
pub(crate) mod credentials;
pub(crate) mod framing;
pub(crate) mod icmp;
pub(crate) mod methods;
pub(crate) mod rejection;
pub(crate) mod request;
pub(crate) mod request_method;
pub(crate) mod response;
pub(crate) mod response_limit;
