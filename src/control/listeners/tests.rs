use super::*;

fn claim(wanted: &[Endpoint], workers: usize) -> Result<NewListeners, ListenError> {
    Listeners::default().preview(wanted, workers, &Neighbours::default(), false)
}

fn each(text: &str) -> [ListenError; 4] {
    let [udp, tcp] = [Transport::Udp, Transport::Tcp].map(|transport| Endpoint::new(transport, text.parse().unwrap()));
    let available = "10.0.0.5 (eth0)".to_owned();
    [
        ListenError::InUse(udp),
        ListenError::InUse(tcp),
        ListenError::NotLocal { endpoint: tcp, available },
        ListenError::NotPermitted(tcp),
    ]
}

#[test]
fn each_error_names_the_transport_and_what_to_do() {
    let lines = each("192.0.2.7:80").map(|error| error.to_string());
    for (line, (begin, part)) in lines.iter().zip([
        ("cannot listen on udp 192.0.2.7:80: ", "`ss -ulpn sport = :80`, or set another port in listen.udp"),
        ("cannot listen on tcp 192.0.2.7:80: ", "`ss -tlpn sport = :80`, or set another port in listen.tcp"),
        ("cannot listen on tcp 192.0.2.7:80: ", "in listen.tcp; the addresses of this machine are 10.0.0.5 (eth0)"),
        ("cannot listen on tcp 192.0.2.7:80: ", "CAP_NET_BIND_SERVICE"),
    ]) {
        assert!(line.starts_with(begin) && line.contains(part), "{line}");
    }
}

#[test]
fn a_front_on_an_address_that_the_machine_does_not_have_is_missing() {
    let text = "[[front]]\nlisten = \"192.0.2.10:443\"\nweb = \"127.0.0.1:8443\"\nnames = [\"turn.example.org\"]\n";
    let missing = missing(&Config::parse(text, "t.toml").unwrap()).unwrap();
    assert_eq!(missing, [MissingListener::Front("192.0.2.10:443".parse().unwrap())]);
    let message = missing[0].to_string();
    assert!(message.starts_with("visitors and clients cannot reach the front at 192.0.2.10:443 yet, "), "{message}");
    assert!(message.ends_with("change it in front.listen"), "{message}");
}

#[test]
fn tcp_and_tls_share_a_socket_on_one_address() {
    // Another program may take the port between two steps.
    assert!((0..100).any(|_| claim_for_tcp_and_tls().is_ok()), "other programs have every port");
}

/// Fails if another program has the port.
fn claim_for_tcp_and_tls() -> Result<(), ListenError> {
    let free = claim(&[Endpoint::new(Transport::Tcp, "0.0.0.0:0".parse().unwrap())], 1)?;
    let port = free.listeners.endpoints()[0].address.port();
    drop(free);
    let at = |transport, ip: &str| Endpoint::new(transport, SocketAddr::new(ip.parse().unwrap(), port));
    let of = |wanted: &[Endpoint]| {
        let NewListeners { listeners, changes } = claim(wanted, 2)?;
        assert_eq!(listeners.endpoints(), wanted);
        let sockets = |change: &ListenerChange| -> Vec<(Endpoint, bool)> {
            change.open.iter().map(|own| (own.endpoint, own.plain)).collect()
        };
        Ok([sockets(&changes[0]), sockets(&changes[1])])
    };
    let (tcp, tls) = (at(Transport::Tcp, "0.0.0.0"), at(Transport::Tls, "0.0.0.0"));
    assert_eq!(of(&[tcp, tls])?, [vec![(tcp, true)], vec![(tcp, true)]]);
    // A socket of its own, on which `listen.tcp` admits clients without TLS.
    let tls = at(Transport::Tls, "127.0.0.1");
    assert_eq!(of(&[tcp, tls])?, [vec![(tcp, true), (tls, true)], vec![(tcp, true), (tls, true)]]);
    let (tcp, tls) = (at(Transport::Tcp, "127.0.0.1"), at(Transport::Tls, "0.0.0.0"));
    assert_eq!(of(&[tcp, tls])?, [vec![(tcp, true), (tls, false)], vec![(tcp, true), (tls, false)]]);
    Ok(())
}

#[test]
fn every_worker_has_a_socket_for_each_address_in_the_order_of_the_configuration() {
    // Another program may take the port between two steps.
    assert!((0..100).any(|_| claim_for_three_workers().is_ok()), "other programs have every port");
}

/// Fails if another program has the port.
fn claim_for_three_workers() -> Result<(), ListenError> {
    let endpoints = |transport, ips: &[&str], port| -> Vec<Endpoint> {
        let addresses = ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
        addresses.map(|address| Endpoint::new(transport, address)).collect()
    };
    let free = claim(&endpoints(Transport::Tcp, &["0.0.0.0"], 0), 1).unwrap();
    let port = free.listeners.endpoints()[0].address.port();
    drop(free);
    // The specific address shares the port of the wildcard that follows it.
    let wanted = endpoints(Transport::Tcp, &["127.0.0.2", "0.0.0.0"], port);
    let NewListeners { listeners, changes } = claim(&wanted, 3)?;
    assert_eq!(listeners.endpoints(), wanted);
    for worker in changes.iter().map(|change| &change.open) {
        assert_eq!(worker.iter().map(|listener| listener.endpoint).collect::<Vec<_>>(), wanted);
        assert!(worker.iter().all(|listener| matches!(listener.socket, ListenerSocket::Tcp(_))));
        let local = |listener: &BoundListener| listener.socket.local_addr().unwrap();
        let addresses: Vec<SocketAddr> = wanted.iter().map(|endpoint| endpoint.address).collect();
        assert_eq!(worker.iter().map(local).collect::<Vec<_>>(), addresses);
    }
    for endpoint in wanted {
        assert!(matches!(claim(&[endpoint], 1), Err(ListenError::InUse(taken)) if taken == endpoint));
    }
    claim(&endpoints(Transport::Udp, &["127.0.0.2", "0.0.0.0"], port), 1).map(drop)
}

#[test]
fn only_what_differs_is_opened_and_closed() {
    let at = |transport, text: &str| Endpoint::new(transport, text.parse().unwrap());
    let start = [at(Transport::Udp, "127.0.0.1:0"), at(Transport::Tcp, "127.0.0.1:0")];
    let NewListeners { listeners, changes: _sockets } = claim(&start, 2).unwrap();
    let actual = listeners.endpoints().to_vec();
    let of = |wanted: &[Endpoint]| {
        let new = listeners.preview(wanted, 2, &Neighbours::default(), false).unwrap();
        let opened = |change: &ListenerChange| change.open.iter().map(|own| own.endpoint).collect::<Vec<_>>();
        assert_eq!(opened(&new.changes[0]), opened(&new.changes[1]));
        (opened(&new.changes[0]), new.changes[0].close.clone(), new.listeners.endpoints().to_vec())
    };
    assert_eq!(of(&start), (vec![], vec![], actual.clone()));
    assert_eq!(of(&start[..1]), (vec![], vec![actual[1]], vec![actual[0]]));
    // The wildcard shares the port with the listener that it replaces.
    let wildcard = Endpoint::new(Transport::Udp, SocketAddr::from((Ipv4Addr::UNSPECIFIED, actual[0].address.port())));
    assert_eq!(of(&[wildcard, start[1]]), (vec![wildcard], vec![actual[0]], vec![wildcard, actual[1]]));
    // A port that was 0 keeps its socket.
    assert_eq!(of(&actual), (vec![], vec![], actual.clone()));
}

// A connection that waits in the queue of a listener stays there.
#[test]
fn a_listener_that_changes_only_its_kind_keeps_its_socket() {
    let at = |transport| Endpoint::new(transport, "127.0.0.1:0".parse().unwrap());
    let NewListeners { listeners, changes: _sockets } = claim(&[at(Transport::Tcp), at(Transport::Tls)], 2).unwrap();
    let [tcp, tls] = [listeners.endpoints()[0], listeners.endpoints()[1]];
    let of = |own: Endpoint, transport| Endpoint::new(transport, own.address);
    let (tcp_as_tls, tls_as_tcp) = (of(tcp, Transport::Tls), of(tls, Transport::Tcp));
    let altered = |endpoint, transport, plain| AlteredListener { endpoint, transport, plain };
    for (wanted, alter, close) in [
        (vec![tcp_as_tls], vec![altered(tcp, Transport::Tls, false)], vec![tls]),
        (vec![tls_as_tcp, tls], vec![altered(tls, Transport::Tcp, true)], vec![tcp]),
        (
            vec![tls_as_tcp, tcp_as_tls],
            vec![altered(tls, Transport::Tcp, true), altered(tcp, Transport::Tls, false)],
            vec![],
        ),
        (vec![at(Transport::Tls)], vec![], vec![tcp]),
        (vec![at(Transport::Tls), at(Transport::Tcp)], vec![], vec![]),
    ] {
        let new = listeners.preview(&wanted, 2, &Neighbours::default(), false).unwrap();
        for change in &new.changes {
            assert!(change.open.is_empty(), "{wanted:?}: {change:?}");
            assert_eq!((&change.alter, &change.close), (&alter, &close), "{wanted:?}");
        }
    }
}

// The kernel gives packets to a new socket as soon as it is bound, and connections as soon as it listens.
#[test]
fn a_refused_change_takes_no_packet_and_no_connection_from_the_listeners() {
    let wildcard = |transport| Endpoint::new(transport, "0.0.0.0:0".parse().unwrap());
    let start = [wildcard(Transport::Udp), wildcard(Transport::Tcp)];
    let NewListeners { listeners, mut changes } = claim(&start, 1).unwrap();
    let [udp, tcp] = [0, 1].map(|at| listeners.endpoints()[at].address.port());
    let specific = |transport, port| Endpoint::new(transport, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = Endpoint::new(Transport::Tcp, other.local_addr().unwrap());
    let wanted = [specific(Transport::Udp, udp), specific(Transport::Tcp, tcp), start[0], start[1], taken];
    let done = std::sync::atomic::AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let (client, mut sent) = (std::net::UdpSocket::bind("127.0.0.1:0").unwrap(), 0);
            // The socket holds that many.
            while !done.load(std::sync::atomic::Ordering::Relaxed) && sent < 400 {
                client.send_to(b"x", ("127.0.0.1", udp)).unwrap();
                sent += 1;
                std::thread::yield_now();
            }
            sent
        });
        for _ in 0..100 {
            let refused = listeners.preview(&wanted, 1, &Neighbours::default(), false);
            assert!(matches!(refused, Err(ListenError::InUse(endpoint)) if endpoint == taken));
            // Each connection must be in the queue of the present listener.
            drop(std::net::TcpStream::connect(("127.0.0.1", tcp)).unwrap());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        sender.join().unwrap()
    });
    let of = |transport: Transport, changes: &mut Vec<ListenerChange>| {
        let at = changes[0].open.iter().position(|own| own.endpoint.transport == transport).unwrap();
        changes[0].open.remove(at).socket
    };
    let ListenerSocket::Udp(socket) = of(Transport::Udp, &mut changes) else { unreachable!() };
    assert_eq!(std::iter::from_fn(|| socket.recv(&mut [0; 8]).ok()).count(), sent);
    let ListenerSocket::Tcp(listener) = of(Transport::Tcp, &mut changes) else { unreachable!() };
    assert_eq!(std::iter::from_fn(|| listener.accept().ok()).count(), 100);
}

#[test]
fn a_port_of_another_service_is_shared_if_it_goes_and_refused_if_it_stays() {
    // Another program may have the port on another address.
    assert!((0..100).any(|_| claim_beside_a_service().is_ok()), "other programs have every port");
}

/// Fails if another program has the port.
fn claim_beside_a_service() -> Result<(), ListenError> {
    let (http, address) = crate::http::Listener::tcp("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let wildcard = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    for wanted in [address, wildcard].map(|address| Endpoint::new(Transport::Tcp, address)) {
        let of = |neighbours| Listeners::default().preview(&[wanted], 2, &neighbours, false);
        assert!(matches!(of(Neighbours::default()), Err(ListenError::InUse(_))));
        let stays = of(Neighbours { stay: vec![address], go: vec![] }).unwrap_err().to_string();
        let expected = format!(
            "cannot listen on {wanted}: http.listen or front.listen of this server uses {address}. Set another port"
        );
        assert!(stays.starts_with(&expected), "{stays}");
        let new = of(Neighbours { stay: vec![], go: vec![address] })?;
        assert_eq!(new.listeners.endpoints(), [wanted]);
    }
    drop(http);
    Ok(())
}

#[test]
fn a_port_of_another_program_is_refused_and_the_listeners_stay() {
    let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = Endpoint::new(Transport::Udp, other.local_addr().unwrap());
    let start = [Endpoint::new(Transport::Udp, "127.0.0.1:0".parse().unwrap())];
    let NewListeners { listeners, .. } = claim(&start, 1).unwrap();
    let refused = listeners.preview(&[start[0], taken], 1, &Neighbours::default(), false);
    assert!(matches!(refused, Err(ListenError::InUse(endpoint)) if endpoint == taken));
    assert!(
        listeners.preview(&start, 1, &Neighbours::default(), false).is_ok_and(|new| new.changes[0].open.is_empty())
    );
}
