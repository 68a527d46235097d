use crate::stun::attribute::{Software, UnknownAttributes, XorMappedAddress};
use crate::stun::{AttributeType, Class, FingerprintStatus, Message, Method, TransactionId};
use crate::turn::RequestMethod;
use crate::turn::tests::support::*;
use crate::turn::{DropReason, Outcome};

// RFC 8489 §6.3.1.1: XOR-MAPPED-ADDRESS is the source transport address.
#[test]
fn binding_response_has_only_the_clients_transport_address() {
    let mut world = World::new();
    for (source, length) in [("192.0.2.7:5000", 32), ("[2001:db8::7]:5000", 44)] {
        let mut tuple = world.client(1).tuple;
        tuple.client = address(source);
        let response = world.response_to(&tuple, &plain(Class::Request, Method::BINDING, &[]));
        assert_eq!(response.outcome, Outcome::Answered(RequestMethod::Binding));
        assert_eq!(response.kinds(), [AttributeType::XOR_MAPPED_ADDRESS]);
        assert_eq!(response.get(), Some(XorMappedAddress(tuple.client)));
        assert_eq!(response.bytes.len(), length);
    }
    assert_eq!(world.footprint(), EMPTY);
}

// RFC 8489 §6.3.1: 420 with the list; unknown comprehension-optional attributes are ignored.
#[test]
fn binding_with_unknown_attributes_is_420_that_lists_the_comprehension_required_ones() {
    let mut world = World::new();
    let tuple = world.client(1).tuple;
    let [required, optional, another] = [0x7abc, 0xbcde, 0x0003].map(AttributeType::new);
    let request = plain(Class::Request, Method::BINDING, &[&Raw(required, &[1]), &Raw(optional, &[2])]);
    let response = world.response_to(&tuple, &request);
    assert_eq!(response.code(), Some(420));
    assert_eq!(response.get(), Some(UnknownAttributes::new(&[required])));

    let request = plain(Class::Request, Method::BINDING, &[&Raw(required, &[]), &Raw(another, &[0; 4])]);
    assert_eq!(world.response_to(&tuple, &request).get(), Some(UnknownAttributes::new(&[required, another])));

    let request = plain(Class::Request, Method::BINDING, &[&Raw(optional, &[]), &Software("client 1.0")]);
    assert_eq!(world.response_to(&tuple, &request).code(), None);
}

// RFC 3489 §11.1: a header with a transaction ID of 16 bytes and no magic cookie.
#[test]
fn a_binding_request_of_rfc_3489_is_dropped() {
    let mut world = World::new();
    let request = [&[0, 1, 0, 0][..], &[0x11; 16]].concat();
    let tuple = world.client(1).tuple;
    assert_eq!(world.dropped(&tuple, &request), DropReason::MalformedStun);
}

// The response must not be longer than the request.
#[test]
fn binding_with_hundreds_of_unknown_attributes_gets_a_small_response() {
    let mut world = World::new();
    let request = write(Class::Request, Method::BINDING, TransactionId::new([1; 12]), |writer| {
        (0x4000..0x4140).for_each(|kind| writer.push(&Raw(AttributeType::new(kind), &[])));
    });
    let response = world.response_to(&world.client(1).tuple, &request);
    assert_eq!(response.code(), Some(420));
    assert!(response.bytes.len() <= 120, "{} bytes", response.bytes.len());
}

// RFC 8489 §7: the response has a FINGERPRINT if the request has one. §6.3: a message with a wrong FINGERPRINT is
// silently discarded.
#[test]
fn responses_have_a_fingerprint_if_the_request_has_one_and_a_wrong_one_is_dropped() {
    let mut world = World::new();
    let tuple = world.client(1).tuple;
    for unknown in [false, true] {
        let mut request = write(Class::Request, Method::BINDING, TransactionId::new([1; 12]), |writer| {
            if unknown {
                writer.push(&Raw(AttributeType::new(0x7abc), &[]));
            }
            writer.fingerprint();
        });
        let response = world.response_to(&tuple, &request);
        assert_eq!(response.message().fingerprint(), FingerprintStatus::Valid);
        assert_eq!(response.code(), unknown.then_some(420));
        *request.last_mut().unwrap() ^= 1;
        assert_eq!(world.dropped(&tuple, &request), DropReason::WrongFingerprint);
    }
    let response = world.response_to(&tuple, &plain(Class::Request, Method::BINDING, &[]));
    assert_eq!(response.message().fingerprint(), FingerprintStatus::Absent);
}

// RFC 8489 §6.3.2: a Binding indication is a keep-alive and has no response.
#[test]
fn binding_indications_and_responses_are_dropped() {
    let mut world = World::new();
    let tuple = world.client(1).tuple;
    assert_eq!(world.dropped(&tuple, &plain(Class::Indication, Method::BINDING, &[])), DropReason::Keepalive);
    for class in [Class::Success, Class::Error] {
        for method in [Method::BINDING, Method::ALLOCATE, Method::SEND] {
            assert_eq!(world.dropped(&tuple, &plain(class, method, &[])), DropReason::UnexpectedResponse);
        }
    }
}

// RFC 8489 §6.3: an unsupported method, or a class that the method does not have, is silently discarded.
#[test]
fn unsupported_methods_are_dropped() {
    let mut world = World::new();
    let tuple = world.client(1).tuple;
    for (class, method) in [
        (Class::Request, Method::SEND),
        (Class::Request, Method::DATA),
        (Class::Request, Method::CONNECT),
        (Class::Request, Method::new(0x0ab).unwrap()),
        (Class::Indication, Method::DATA),
        (Class::Indication, Method::ALLOCATE),
        (Class::Indication, Method::REFRESH),
        (Class::Indication, Method::CREATE_PERMISSION),
        (Class::Indication, Method::CHANNEL_BIND),
    ] {
        assert_eq!(world.dropped(&tuple, &plain(class, method, &[])), DropReason::UnsupportedMethod, "{method}");
    }
}

// A response to these addresses would reach no host, or many.
#[test]
fn requests_from_unusable_sources_are_dropped() {
    let mut world = World::new();
    let request = plain(Class::Request, Method::BINDING, &[]);
    assert!(Message::parse(&request).is_ok());
    for source in ["192.0.2.7:0", "0.0.0.0:5000", "[::]:5000", "224.0.0.1:5000", "[ff02::1]:5000", "255.255.255.255:9"]
    {
        let mut tuple = world.client(1).tuple;
        tuple.client = address(source);
        assert_eq!(world.dropped(&tuple, &request), DropReason::UnusableSource, "{source}");
    }
}
