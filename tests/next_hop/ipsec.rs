//! The IPsec policies of the kernel.

use turnserver::offload::ipsec::{Ipsec, check, policies};

use crate::network::{in_own_network, ip};

#[test]
fn policies_of_the_machine_are_found() {
    in_own_network(&[], || {
        assert_eq!(policies().unwrap(), 0);
        check().unwrap();
        let template = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode transport";
        ip(&format!("xfrm policy add src 192.0.2.1/32 dst 203.0.113.0/24 dir out {template}"));
        ip(&format!("xfrm policy add src 203.0.113.0/24 dst 192.0.2.1/32 dir in {template}"));
        ip("xfrm policy add src 2001:db8::/64 dst 2001:db8:1::/64 dir out action block");
        assert_eq!(policies().unwrap(), 3);
        let error = check().unwrap_err();
        assert!(matches!(error, Ipsec::Policies(3)));
        assert!(
            error.to_string().contains("this machine has IPsec policies (3; `ip xfrm policy` lists them)"),
            "{error}"
        );
        // The policy of an XFRM interface.
        ip(&format!("xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out if_id 7 {template}"));
        assert_eq!(policies().unwrap(), 3);
        ip("xfrm policy flush");
        check().unwrap();
    });
}

#[test]
fn more_policies_than_one_message_holds_are_found() {
    in_own_network(&[], || {
        let add = |number: u32| {
            let (high, low) = (number / 256, number % 256);
            format!("xfrm policy add src 192.0.2.1/32 dst 10.0.{high}.{low}/32 dir out action block")
        };
        crate::hosts::batch(&(0..600).map(add).collect::<Vec<_>>());
        assert_eq!(policies().unwrap(), 600);
    });
}

#[test]
fn default_policies_that_block_are_found() {
    in_own_network(&[], || {
        ip("xfrm policy setdefault in block fwd block out accept");
        assert_eq!(policies().unwrap(), 1);
        ip("xfrm policy setdefault in block out block");
        assert_eq!(policies().unwrap(), 2);
        ip("xfrm policy setdefault in accept fwd accept out accept");
        check().unwrap();
    });
}
