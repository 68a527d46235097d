//! Diagnosis: does the relay work, and if not, why.

mod finding;
mod ice_servers;
mod link;
mod relay;
mod remote;
mod session;
mod trust;

use std::path::Path;

pub use finding::{Finding, Status, report, summary, worst};
pub use ice_servers::{IceServer, IceServersError, parse as parse_ice_servers};

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
