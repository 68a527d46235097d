//! The interfaces that `interfaces = "auto"` selects. No kernel is sure to have one with a driver in a new namespace: the
//! tests of the module have those.

use std::collections::HashMap;
use std::process::Command;

use turnserver::offload::select::{Candidate, NotChosen, automatic};

use crate::hosts::{index, with_hosts};
use crate::network::ip;

/// Returns the verdict on each interface that these tests make. A kernel may have more, such as `sit0`.
fn verdicts() -> HashMap<String, Result<(), NotChosen>> {
    let candidates = automatic().unwrap();
    assert!(candidates.is_sorted_by_key(|candidate| candidate.index), "{candidates:?}");
    let verdict = |candidate: Candidate| {
        assert_eq!(candidate.index, index(&candidate.name));
        (candidate.name, candidate.verdict)
    };
    candidates.into_iter().map(verdict).collect()
}

#[test]
fn virtual_interfaces_are_not_selected_and_say_why() {
    with_hosts([1, 2], |_, _| {
        ip("link add b0 type bridge");
        ip("link set n2 master b0");
        let verdicts = verdicts();
        assert_eq!(verdicts["n1"], Err(NotChosen::Veth));
        assert_eq!(verdicts["n2"], Err(NotChosen::Member { of: "b0".to_owned() }));
        assert_eq!(verdicts["b0"], Err(NotChosen::Kind { kind: "bridge".to_owned() }));
        assert!(!verdicts.contains_key("lo"));
        let text = verdicts["n1"].as_ref().unwrap_err().to_string();
        assert!(text.contains("name the interface in `offload.interfaces`"), "{text}");
        ip("link set n2 nomaster");
        assert_eq!(self::verdicts()["n2"], Err(NotChosen::Veth));
    });
}

#[test]
fn a_bond_in_a_mode_with_xdp_is_selected_once_it_is_up_and_has_an_address() {
    with_hosts([], |_, _| {
        let made = Command::new("ip").args("link add bond7 type bond mode active-backup".split(' ')).output().unwrap();
        if !made.status.success() {
            println!("this kernel has no bonds");
            return;
        }
        assert_eq!(verdicts()["bond7"], Err(NotChosen::Down));
        ip("link set bond7 up");
        assert_eq!(verdicts()["bond7"], Err(NotChosen::NoAddress));
        ip("addr add 169.254.7.7/16 dev bond7");
        assert_eq!(verdicts()["bond7"], Err(NotChosen::NoAddress));
        ip("addr add 10.0.7.1/24 dev bond7");
        assert_eq!(verdicts()["bond7"], Ok(()));
        ip("link add bond8 type bond mode balance-tlb");
        assert_eq!(verdicts()["bond8"], Err(NotChosen::Bond));
    });
}
