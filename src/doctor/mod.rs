//! Diagnosis: does the relay work, and if not, why.

mod finding;
mod ice_servers;
mod link;
mod machine;
mod relay;
mod remote;
mod session;
mod timed;
mod trust;

use std::path::Path;

pub use finding::{Finding, Status, report, summary, worst};
pub use ice_servers::{IceServer, IceServersError, parse as parse_ice_servers};
pub use machine::Machine;

/// Examines servers as their clients see them. Passes each finding to `report` as soon as it is known. `authorities`: a
/// file with certificates of further authorities, in PEM.
///
/// # Errors
/// If that file cannot be used.
pub fn examine_servers(
    servers: &[IceServer],
    authorities: Option<&Path>,
    report: &mut dyn FnMut(Finding),
) -> Result<(), String> {
    remote::examine(servers, &trust::Trust::new(authorities)?, report);
    Ok(())
}

/// Examines this machine and its configuration, and the relay path if the server runs. Otherwise as
/// [`examine_servers`].
///
/// # Errors
/// If the file of authorities cannot be used.
pub fn examine_machine(
    machine: &Machine<'_>,
    authorities: Option<&Path>,
    report: &mut dyn FnMut(Finding),
) -> Result<(), String> {
    machine::examine(machine, &trust::Trust::new(authorities)?, report);
    Ok(())
}
