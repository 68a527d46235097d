//! The methods of the requests that this server serves.

use crate::stun::Method;

macro_rules! request_methods {
    ($($(#[doc = $doc:literal])+ $name:ident = $method:ident,)+) => {
        /// The method of a request that this server serves. [`Server::request`](crate::turn::Server) matches on it
        /// without a wildcard, so a method without a handler does not compile. The counters are derived from `ALL`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum RequestMethod {
            $($(#[doc = $doc])+ $name,)+
        }

        impl RequestMethod {
            /// Every method, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Returns the request method with this number; `None` if this server does not serve it as a request.
            #[must_use]
            pub fn of(method: Method) -> Option<Self> {
                match method {
                    $(Method::$method => Some(Self::$name),)+
                    _ => None,
                }
            }
        }

        impl From<RequestMethod> for Method {
            fn from(method: RequestMethod) -> Self {
                match method {
                    $(RequestMethod::$name => Self::$method,)+
                }
            }
        }
    };
}

request_methods! {
    /// RFC 8489 §2.
    Binding = BINDING,
    /// RFC 8656 §7.
    Allocate = ALLOCATE,
    /// RFC 8656 §8.
    Refresh = REFRESH,
    /// RFC 8656 §10.
    CreatePermission = CREATE_PERMISSION,
    /// RFC 8656 §12.
    ChannelBind = CHANNEL_BIND,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_served_requests_have_a_request_method() {
        let served = (0..=0xfff).filter_map(|number| RequestMethod::of(Method::new(number).unwrap()));
        assert_eq!(served.collect::<Vec<_>>(), RequestMethod::ALL);
        for method in RequestMethod::ALL {
            assert_eq!(RequestMethod::of((*method).into()), Some(*method));
        }
    }
}
