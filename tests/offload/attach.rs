//! The program on real interfaces, and its files in a BPF file system. Each test has its own namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use aya::programs::{Xdp, XdpMode};
use aya_obj::programs::XdpAttachType;
use nix::mount::{MsFlags, mount};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use turnserver::offload::maps::Maps;
use turnserver::offload::obstacle::NotAttached;
use turnserver::offload::pinned::{self, AttachError, DirectoryError, Interface, Lock, OpenError};
use turnserver::offload::program::{self, Sizes};

use crate::example::entry;
use crate::kernel::{Kernel, skip};
use crate::layout::{Counter, Direction};
use crate::maps::load;

const SIZES: Sizes = Sizes { entries: 64, slots: 128 };
/// A user and groups that no file of this machine has.
const USER: u32 = 64_999;
pub(crate) const GROUP: u32 = 64_998;
const OTHER_GROUP: u32 = 64_997;
/// The directory for [`uses_the_maps_of_the_environment`].
const VARIABLE: &str = "OFFLOAD_TEST_MAPS";

/// Runs a test with the interfaces `v0` and `v1`, which are connected, and an empty BPF file system, whose path it gets.
pub(crate) fn with_interfaces(test: impl FnOnce(&Path) + Send) {
    if load(SIZES).is_none() {
        return;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return skip("the `ip` command is missing");
    }
    let directory = TemporaryDirectory::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS) {
                return skip(&format!("no privilege to create namespaces ({error})"));
            }
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            // It shows the interfaces of the namespace in which it was mounted.
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
            let files = directory.0.join("bpf");
            fs::create_dir(&files).unwrap();
            mount(Some("bpf"), &files, Some("bpf"), MsFlags::empty(), Some("mode=755")).unwrap();
            ip("link add v0 type veth peer name v1");
            ip("link set v0 up");
            test(&files);
        });
    });
}

struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("turnserver-offload-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the identifier of the XDP program of an interface.
pub(crate) fn program_on(interface: &str) -> Option<u32> {
    let text = ip(&format!("-d link show {interface}"));
    let (_, rest) = text.split_once("prog/xdp")?;
    let (_, rest) = rest.split_once("id ")?;
    rest.split_whitespace().next()?.parse().ok()
}

fn names(interfaces: &[&str]) -> Vec<String> {
    interfaces.iter().map(|name| (*name).to_owned()).collect()
}

/// Attaches, and returns the interfaces that did not take the program.
fn attach(directory: &Path, interfaces: &[&str]) -> Vec<Interface> {
    let attached = pinned::attach(directory, Some(GROUP), SIZES, &names(interfaces)).unwrap();
    let found: Vec<_> = attached.iter().map(|interface| interface.name.as_str()).collect();
    assert_eq!(found, interfaces);
    attached.into_iter().filter(|interface| interface.attached.is_err()).collect()
}

pub(crate) fn index(interface: &str) -> u32 {
    if_nametoindex(interface).unwrap()
}

#[test]
fn the_program_is_attached_until_its_attachment_is_dropped() {
    with_interfaces(|_| {
        let mut program = load(SIZES).unwrap();
        let attachments = ["v0", "v1"].map(|name| program.attach(name).unwrap());
        assert!(program_on("v0").is_some());
        assert_eq!(program_on("v0"), program_on("v1"));
        assert!(ip("link show v0").contains(" xdp "), "in native mode");
        drop(attachments);
        assert_eq!((program_on("v0"), program_on("v1")), (None, None));
    });
}

#[test]
fn an_interface_says_why_it_does_not_take_the_program() {
    with_interfaces(|_| {
        let mut program = load(SIZES).unwrap();
        let error = program.attach("absent").unwrap_err();
        assert!(matches!(error, NotAttached::NoInterface), "{error}");
        let error = program.attach("lo").unwrap_err();
        assert!(matches!(error, NotAttached::NotSupported { .. }), "{error}");
        ip("link set v0 mtu 9000");
        ip("link set v1 mtu 9000");
        let error = program.attach("v0").unwrap_err();
        assert!(matches!(error, NotAttached::MtuTooLarge { .. }), "{error}");
        assert!(error.to_string().contains("its MTU of 9000"), "{error}");
        assert_eq!(program_on("v0"), None);
    });
}

#[test]
fn a_program_that_is_attached_without_a_link_is_detached() {
    with_interfaces(|files| {
        let mut kernel = Kernel::load().unwrap();
        let path = files.join("relay");
        kernel.program("relay").pin(&path).unwrap();
        // The kernel makes no link for an attachment of this type. So `aya` attaches the program by netlink.
        let mut program = Xdp::from_pin(&path, XdpAttachType::DevMap).unwrap();
        let error = program::attach(&mut program, "v0").unwrap_err();
        assert!(error.to_string().contains("only without a link"), "{error}");
        assert_eq!(program_on("v0"), None);
    });
}

#[test]
fn another_program_is_not_replaced() {
    with_interfaces(|files| {
        let mut program = load(SIZES).unwrap();
        for mode in [XdpMode::Driver, XdpMode::Skb] {
            let mut other = Kernel::load().unwrap();
            other.program("pass_all").attach("v0", mode).unwrap();
            let before = program_on("v0");
            let error = program.attach("v0").unwrap_err();
            assert!(matches!(error, NotAttached::OtherProgram), "{error}");
            let directory = files.join("turnserver");
            let failed = attach(&directory, &["v0", "v1"]);
            let [Interface { name, attached: Err(NotAttached::OtherProgram) }] = &failed[..] else {
                panic!("{failed:?}")
            };
            assert_eq!(name, "v0");
            assert_eq!(pinned::interfaces(&directory).unwrap(), [index("v1")]);
            pinned::detach(&directory).unwrap();
            assert!(before.is_some());
            assert_eq!(program_on("v0"), before);
        }
    });
}

#[test]
fn the_files_keep_the_program_attached_until_they_are_removed() {
    with_interfaces(|files| {
        let directory = files.join("turnserver");
        pinned::detach(&directory).unwrap();
        assert!(matches!(pinned::open(&directory), Err(OpenError::Missing(_))));
        assert!(pinned::interfaces(&directory).unwrap().is_empty());

        assert!(attach(&directory, &["v0", "v1"]).is_empty());
        let first = program_on("v0").expect("it is attached");
        assert_eq!(program_on("v1"), Some(first));
        let mut interfaces = pinned::interfaces(&directory).unwrap();
        interfaces.sort_unstable();
        let mut expected = [index("v0"), index("v1")];
        expected.sort_unstable();
        assert_eq!(interfaces, expected);
        let mut first_maps = pinned::open(&directory).unwrap();
        let entry = entry(Direction::ToPeer, true, true);
        first_maps.maps.insert(&entry).unwrap();
        let mut same = pinned::read(&directory).unwrap();
        assert!(same.remove(entry.direction, &entry.key()).unwrap());
        first_maps.maps.insert(&entry).unwrap();
        assert!(pinned::is_current(&directory, &first_maps.maps).unwrap());
        assert!(pinned::is_current(&directory, &same).unwrap());

        // The second program has empty maps, and an interface that is not listed loses the first.
        assert!(attach(&directory, &["v0"]).is_empty());
        assert!(program_on("v0").is_some_and(|second| second != first));
        assert_eq!(program_on("v1"), None);
        assert_eq!(pinned::interfaces(&directory).unwrap(), [index("v0")]);
        assert!(!pinned::is_current(&directory, &first_maps.maps).unwrap());
        // The server opens them while it still has the first ones.
        let mut maps = pinned::open(&directory).unwrap().maps;
        assert!(!maps.remove(entry.direction, &entry.key()).unwrap());
        assert!(pinned::is_current(&directory, &maps).unwrap());

        pinned::detach(&directory).unwrap();
        assert!(!pinned::is_current(&directory, &maps).unwrap());
        assert_eq!(program_on("v0"), None);
        assert!(!directory.exists());
        pinned::detach(&directory).unwrap();
    });
}

#[test]
fn interfaces_are_added_and_removed_without_a_change_of_the_maps() {
    with_interfaces(|files| {
        let directory = files.join("turnserver");
        assert!(pinned::set_interfaces(&directory, &names(&["v0"])).is_err(), "there is no program");
        assert!(attach(&directory, &["v0"]).is_empty());
        let program = program_on("v0").unwrap();
        let mut opened = pinned::open(&directory).unwrap();
        let entry = entry(Direction::ToPeer, true, true);
        opened.maps.insert(&entry).unwrap();
        for (interfaces, expected) in [
            (&["v0", "v1"][..], (Some(program), Some(program))),
            (&["v1"], (None, Some(program))),
            (&[], (None, None)),
            (&["v0"], (Some(program), None)),
        ] {
            let attached = pinned::set_interfaces(&directory, &names(interfaces)).unwrap();
            assert!(attached.iter().all(|interface| interface.attached.is_ok()), "{attached:?}");
            assert_eq!((program_on("v0"), program_on("v1")), expected);
            assert!(pinned::is_current(&directory, &opened.maps).unwrap());
        }
        let mut same = pinned::read(&directory).unwrap();
        assert!(same.remove(entry.direction, &entry.key()).unwrap());
        pinned::detach(&directory).unwrap();
        assert_eq!(program_on("v0"), None);
    });
}

#[test]
fn a_second_server_does_not_get_the_maps_of_the_first() {
    with_interfaces(|files| {
        let directory = files.join("turnserver");
        assert!(attach(&directory, &["v0"]).is_empty());
        let first = pinned::open(&directory).unwrap();
        let error = pinned::open(&directory).unwrap_err();
        assert!(matches!(error, OpenError::InUse(_)), "{error}");
        let expected = format!("another server uses the maps in {}", directory.join("maps").display());
        assert!(error.to_string().starts_with(&expected), "{error}");
        // Other processes may read them, and the lock does not depend on the maps.
        pinned::read(&directory).unwrap();
        drop(first.maps);
        assert!(matches!(pinned::open(&directory), Err(OpenError::InUse(_))));
        drop(first.lock);
        pinned::open(&directory).unwrap();
    });
}

#[test]
fn a_directory_belongs_to_one_network_namespace() {
    with_interfaces(|files| {
        let directory = files.join("turnserver");
        assert!(attach(&directory, &["v0"]).is_empty());
        let program = program_on("v0");
        thread::scope(|scope| {
            scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                // It has the index of the interface of the other namespace.
                let index = interface_of(&directory);
                ip(&format!("link add v0 index {index} type veth peer name v1"));
                let Err(AttachError::NotPinned(error @ DirectoryError::OtherNamespace(_))) =
                    pinned::attach(&directory, None, SIZES, &names(&["v0"]))
                else {
                    panic!("the other namespace is not noticed")
                };
                let expected = format!(
                    "the program of {} is attached to interfaces of another network namespace",
                    directory.display()
                );
                assert!(error.to_string().starts_with(&expected), "{error}");
                let error = pinned::set_interfaces(&directory, &names(&["v0"])).unwrap_err();
                assert!(matches!(error, DirectoryError::OtherNamespace(_)), "{error}");
                let error = pinned::open(&directory).unwrap_err();
                assert!(matches!(error, OpenError::OtherNamespace(_)), "{error}");
                assert_eq!(program_on("v0"), None);
            });
        });
        assert_eq!(program_on("v0"), program);
        pinned::open(&directory).unwrap();
        // After this, the directory belongs to any namespace.
        pinned::detach(&directory).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                ip("link add v0 type veth peer name v1");
                assert!(attach(&directory, &["v0"]).is_empty());
                pinned::open(&directory).unwrap();
                pinned::detach(&directory).unwrap();
            });
        });
    });
}

/// Returns the index of the only interface of a directory.
fn interface_of(directory: &Path) -> u32 {
    let interfaces = pinned::interfaces(directory).unwrap();
    let [index] = interfaces[..] else { panic!("{interfaces:?}") };
    index
}

#[test]
fn an_interface_that_was_made_again_gets_the_program() {
    with_interfaces(|files| {
        let directory = files.join("turnserver");
        assert!(attach(&directory, &["v0"]).is_empty());
        let index = index("v0");
        ip("link del v0");
        ip(&format!("link add v0 index {index} type veth peer name v1"));
        assert_eq!(program_on("v0"), None);
        assert!(attach(&directory, &["v0"]).is_empty());
        assert!(program_on("v0").is_some());
        ip("link del v0");
        assert!(matches!(attach(&directory, &["v0"])[..], [Interface { attached: Err(NotAttached::NoInterface), .. }]));
        assert!(pinned::interfaces(&directory).unwrap().is_empty());
    });
}

#[test]
fn a_directory_that_is_not_on_a_bpf_file_system_is_refused() {
    with_interfaces(|files| {
        let other = files.parent().unwrap().join("turnserver");
        let error = pinned::attach(&other, None, SIZES, &names(&["v0"])).unwrap_err();
        assert!(matches!(error, AttachError::NotPinned(DirectoryError::NotBpf(_))), "{error}");
        assert!(!other.exists());
        assert_eq!(program_on("v0"), None);
    });
}

#[test]
fn the_group_of_the_files_uses_the_maps_without_capabilities() {
    if Command::new("setpriv").arg("--version").output().is_err() {
        return skip("the `setpriv` command is missing");
    }
    with_interfaces(|files| {
        let directory = files.join("turnserver");
        assert!(attach(&directory, &["v0"]).is_empty());
        let (uid, link) = (0, directory.join("links").join(index("v0").to_string()));
        let modes = [(directory.join("maps/to_peer"), 0o660), (directory.join("maps"), 0o750), (link, 0o600)];
        for (path, mode) in modes {
            let status = fs::metadata(&path).unwrap();
            assert_eq!((status.mode() & 0o777, status.uid()), (mode, uid), "{}", path.display());
        }
        let program = files.parent().unwrap().join("child");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let run = |group: u32| {
            let output = Command::new("setpriv")
                .args([format!("--reuid={USER}"), format!("--regid={group}")])
                .args(["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"])
                .arg(&program)
                .args(["--ignored", "--exact", "--nocapture", "attach::uses_the_maps_of_the_environment"])
                .env(VARIABLE, &directory)
                .output()
                .unwrap();
            (output.status.success(), format!("{}", String::from_utf8_lossy(&output.stdout)))
        };
        let (_, text) = run(OTHER_GROUP);
        assert!(text.contains("may not open"), "{text}");
        let (success, text) = run(GROUP);
        if text.contains("before Linux 5.19") {
            return skip("this kernel permits maps only to processes with CAP_BPF");
        }
        assert!(success && text.contains("all of it works"), "{text}");
        // It has replaced nothing else.
        assert!(program_on("v0").is_some());
    });
}

#[test]
#[ignore = "is run by another test, with a directory in its environment"]
fn uses_the_maps_of_the_environment() {
    let Some(directory) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return };
    let (mut maps, _lock): (Maps, Lock) = match pinned::open(&directory) {
        Ok(opened) => (opened.maps, opened.lock),
        Err(error) => return println!("{error}"),
    };
    assert!(matches!(pinned::open(&directory), Err(OpenError::InUse(_))));
    assert!(pinned::is_current(&directory, &maps).unwrap());
    let entry = entry(Direction::ToPeer, true, true);
    maps.clear().unwrap();
    maps.insert(&entry).unwrap();
    maps.insert(&entry).unwrap();
    assert!(maps.remove(entry.direction, &entry.key()).unwrap());
    maps.read_counters(0, &mut [Counter::default(); 128]).unwrap();
    maps.read_outcomes().unwrap();
    maps.extend_lease(255, 1).unwrap();
    assert_eq!(pinned::interfaces(&directory).unwrap().len(), 1);
    let mut same = maps.try_clone().unwrap();
    same.insert(&entry).unwrap();
    assert!(maps.remove(entry.direction, &entry.key()).unwrap());
    // What it may not do.
    let link = directory.join("links").join(pinned::interfaces(&directory).unwrap()[0].to_string());
    assert!(aya::programs::links::PinnedLink::from_pin(link).is_err());
    assert!(pinned::detach(&directory).is_err());
    assert!(program::Program::load(SIZES).is_err());
    println!("all of it works");
}
