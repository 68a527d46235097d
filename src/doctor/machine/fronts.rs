//! Fronts: whether the web site behind each can be reached, and whether there is a certificate for the names of the relay.

use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::certificates;
use crate::config::{Config, Front, WebSite};
use crate::doctor::finding::Finding;
use crate::doctor::remote::Report;
use crate::net::tls;

/// The time for a connection to the web site.
const CONNECT: Duration = Duration::from_secs(2);

pub(super) fn examine(config: &Config, report: Report<'_>) {
    // What is wrong with the files has been reported.
    let setups = certificates(config);
    for front in &config.fronts {
        report(web_site(front).of(front.listen));
        for name in &front.names {
            let selected = setups.as_ref().and_then(|setups| tls::for_client(setups, Some(name)));
            if selected.is_some_and(|setup| !setup.certificate.covers(name)) {
                report(
                    Finding::warning(
                        "front-name",
                        format!("no certificate is valid for {name}, so browsers reject turns:{name} at this front"),
                        "get one with this name in [[tls.certificates]], or correct `names`",
                    )
                    .of(front.listen),
                );
            }
        }
    }
}

fn web_site(front: &Front) -> Finding {
    let connected: io::Result<()> = match &front.web {
        WebSite::Tcp(address) => TcpStream::connect_timeout(address, CONNECT).map(drop),
        WebSite::Unix(path) => connect_unix(path),
    };
    match connected {
        Ok(()) => Finding::ok("web-site", format!("the web site at {} accepts connections", front.web)),
        Err(error) => Finding::fault(
            "web-site",
            format!("the web site at {} cannot be reached ({error}), so its visitors get an error", front.web),
            "start the web server, or correct `web`; the relay works all the same",
        ),
    }
}

fn connect_unix(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::unix(path)?, CONNECT)
}
