//! Cases that run over each transport.

/// Makes three tests of each case, a function of the transport by which the pages reach the relay.
macro_rules! over_each_transport {
    ($($test:ident: $case:expr;)+) => {
        $crate::transports::over_each_transport! { @ [udp tcp tls] { $($test: $case;)+ } }
    };
    (@ [$($transport:ident)+] $cases:tt) => {
        $($crate::transports::over_each_transport! { @@ $transport $cases })+
    };
    (@@ $transport:ident { $($test:ident: $case:expr;)+ }) => {
        mod $transport {
            #[allow(clippy::wildcard_imports, reason = "a case may use everything of its module")]
            use super::*;

            $(
                #[test]
                fn $test() {
                    let case: fn(&str) = $case;
                    case(stringify!($transport));
                }
            )+
        }
    };
}
pub(crate) use over_each_transport;
