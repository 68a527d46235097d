//! What goes over the wire: framing, requests from authentication to response, and one handler for each method.

pub(crate) mod channel_data;
pub(crate) mod channel_numbers;
pub(crate) mod credentials;
pub(crate) mod framing;
pub(crate) mod icmp;
pub(crate) mod methods;
pub(crate) mod rejection;
pub(crate) mod request;
pub(crate) mod request_method;
pub(crate) mod response;
