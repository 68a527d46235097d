//! Pictures of the pages, for people to look at: target/tmp/rooms-*.png.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::driver::switch_to;
use crate::place::Place;

const WIDE: [u32; 2] = [1280, 800];
const PHONE: [u32; 2] = [390, 844];

#[test]
fn pictures_of_the_pages() {
    let place = Place::new();
    let save = |name: &str, picture: &[u8]| {
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5_000, "{name} is no picture");
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("rooms-{name}.png"));
        fs::write(&file, picture).unwrap();
        println!("picture: {}", file.display());
    };
    let look = |[width, height]: [u32; 2], scheme: &str| {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        place.browser.devtools("Emulation.setDeviceMetricsOverride", &metrics);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        place.browser.devtools("Emulation.setEmulatedMedia", &features);
    };
    let looks = [("light", WIDE, "light"), ("dark", WIDE, "dark"), ("phone", PHONE, "light")];

    let room = place.room();
    for (name, size, scheme) in looks {
        look(size, scheme);
        save(&format!("start-{name}"), &place.browser.picture());
    }
    place.browser.navigate(&format!("{}/room/{room}?capture=synthetic&name=Ann", place.servers.url));
    for (name, size, scheme) in looks {
        look(size, scheme);
        save(&format!("prejoin-{name}"), &place.browser.picture());
    }
    let ann = place.enter(&room, "Ann", "udp");
    let ben = place.enter(&room, "Ben", "udp");
    let cid = place.enter(&room, "Cid", "udp");
    cid.run("await rooms.share(true);");
    ben.run("rooms.send('Can you see my screen?');");
    ann.wait("for the screen", "state.peers.length === 2 && state.peers.some((p) => p.screenFramesDecoded > 0)");
    ann.wait_for_frames(20);
    for (name, size, scheme) in looks {
        look(size, scheme);
        ann.wait_for_frames(2);
        save(&format!("call-{name}"), &{ switch_to(&place.browser, &ann.window); place.browser.picture() });
    }
}
