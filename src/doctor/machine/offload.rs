//! Whether the kernel relays, or could.

use std::path::Path;

use nix::net::if_::if_indextoname;

use super::super::finding::Finding;
use crate::config::{Offload, OffloadInterfaces, OffloadMode};
use crate::offload::pinned::{self, DIRECTORY};
use crate::offload::select;

const CHECK: &str = "offload";

/// Examines which interfaces have the XDP program. User space relays all the same, so nothing here is a fault.
pub(super) fn examine(offload: &Offload) -> Finding {
    if offload.mode == OffloadMode::Off {
        return Finding::ok(CHECK, "`offload.mode` is \"off\": the server relays everything itself");
    }
    match pinned::interfaces(Path::new(DIRECTORY)) {
        Ok(indices) if !indices.is_empty() => {
            let name = |index: &u32| if_indextoname(*index).ok().map(|name| name.to_string_lossy().into_owned());
            let names: Vec<String> = indices.iter().filter_map(name).collect();
            Finding::ok(CHECK, "the XDP program is attached: `turnserver ctl offload` shows what it relays")
                .of(names.join(", "))
        }
        Ok(_) if offload.mode == OffloadMode::Require => Finding::ok(
            CHECK,
            "the XDP program is not attached: `turnserver ctl offload` shows whether the server waits for it",
        ),
        Ok(_) => Finding::ok(CHECK, format!("the server relays everything itself: {}", why_not(&offload.interfaces))),
        // As another user than root.
        Err(error) => Finding::ok(CHECK, format!("it is unknown whether the kernel relays: {error}")),
    }
}

/// Says which interfaces could take the program, or why none can.
fn why_not(interfaces: &OffloadInterfaces) -> String {
    let attach = |names: &str| format!("`turnserver offload attach`, as the unit does, would attach it to {names}");
    match interfaces {
        OffloadInterfaces::Given(names) => attach(&names.join(", ")),
        OffloadInterfaces::Auto => match select::automatic() {
            Ok(candidates) => {
                let able: Vec<&str> =
                    candidates.iter().filter(|one| one.verdict.is_ok()).map(|one| one.name.as_str()).collect();
                let unable =
                    candidates.iter().filter_map(|one| Some(format!("{}: {}", one.name, one.verdict.as_ref().err()?)));
                match able.as_slice() {
                    [] if candidates.is_empty() => "there is no interface except loopback".to_owned(),
                    [] => unable.collect::<Vec<_>>().join("; "),
                    names => attach(&names.join(", ")),
                }
            }
            Err(error) => format!("the interfaces of this machine cannot be read: {error}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examine_mode(mode: OffloadMode, interfaces: OffloadInterfaces) -> Finding {
        examine(&Offload { mode, interfaces, channels: None })
    }

    #[test]
    fn the_mode_off_is_named() {
        let finding = examine_mode(OffloadMode::Off, OffloadInterfaces::Auto);
        assert!(finding.what.contains("`offload.mode` is \"off\""), "{finding:?}");
    }

    #[test]
    fn the_interfaces_that_could_take_the_program_are_named() {
        let given = OffloadInterfaces::Given(vec!["wan0".to_owned(), "wan1".to_owned()]);
        assert_eq!(why_not(&given), "`turnserver offload attach`, as the unit does, would attach it to wan0, wan1");
    }

    #[test]
    fn why_there_is_no_program_is_not_left_out() {
        for mode in OffloadMode::ALL {
            let finding = examine_mode(mode, OffloadInterfaces::Auto);
            assert!(!finding.what.ends_with(": "), "{finding:?}");
        }
    }
}
