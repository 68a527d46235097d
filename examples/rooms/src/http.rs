//! The HTTP requests: pages, new rooms, and the WebSockets of the signalling.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Extension, Path, State};
use axum::http::header::{CONTENT_TYPE, HOST, HeaderName, ORIGIN, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use ipnet::IpNet;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::headers;
use crate::ice_servers::IceServers;
use crate::id::RoomId;
use crate::message;
use crate::pages::Pages;
use crate::places::{Place, Places};
use crate::rate::{PerSource, Rate};
use crate::rooms::{NotMade, Rooms};
use crate::signalling;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How fast a source may make rooms.
const NEW_ROOMS: Rate = Rate { burst: 10, interval: Duration::from_secs(6) };

/// How fast a source may enter rooms. Many people may share an address.
const JOINS: Rate = Rate { burst: 100, interval: Duration::from_millis(600) };

/// What the requests share.
#[derive(Debug)]
pub(crate) struct Application {
    pub(crate) rooms: Rooms,
    pub(crate) ice: Arc<IceServers>,
    pages: Pages,
    new_rooms: PerSource,
    /// How fast a source may enter rooms. Each participant gets credentials for the relay.
    pub(crate) joins: PerSource,
    /// The proxies whose word on the address of a client is believed.
    proxies: Arc<[IpNet]>,
    /// The WebSockets of the clients of proxies.
    forwarded: Arc<Places>,
    /// The server waits until all receivers are dropped.
    _stop: watch::Receiver<bool>,
}

/// The client of a connection, which the server adds to its requests.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) is_proxy: bool,
    /// Its place among the connections, which a WebSocket keeps.
    pub(crate) place: Arc<Place>,
}

type App = State<Arc<Application>>;

impl Application {
    pub(crate) fn new(
        rooms: Rooms,
        ice: Arc<IceServers>,
        pages: Pages,
        proxies: Arc<[IpNet]>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let (new_rooms, joins) = (PerSource::new(NEW_ROOMS), PerSource::new(JOINS));
        Self { rooms, ice, pages, new_rooms, joins, proxies, forwarded: Arc::default(), _stop: stop }
    }

    /// Returns the address of a client: that of the connection or, if it is from a proxy, the last one in
    /// `X-Forwarded-For` that is not a proxy. A client may have written the ones before.
    fn source(&self, client: &Client, headers: &HeaderMap) -> IpAddr {
        let is_proxy = |address: IpAddr| self.proxies.iter().any(|proxies| proxies.contains(&address));
        let mut source = client.address.ip().to_canonical();
        let forwarded: Vec<&str> =
            headers.get_all(X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
        for text in forwarded.iter().flat_map(|value| value.split(',')).rev() {
            if !is_proxy(source) {
                break;
            }
            // Some proxies add the port.
            let (text, with_port) = (text.trim(), text.trim().parse::<SocketAddr>());
            let Ok(address) = with_port.map(|address| address.ip()).or_else(|_| text.parse()) else { break };
            source = address.to_canonical();
        }
        source
    }
}

/// Returns the routes.
pub(crate) fn routes(application: Arc<Application>) -> Router {
    Router::new()
        .route("/", get(start_page))
        .route("/room/{room}", get(room_page))
        .route("/static/{*path}", get(file))
        .route("/api/rooms", post(make_room))
        .route("/api/health", get(|| async { "ok\n" }))
        .route("/ws", get(web_socket))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "There is nothing here.") })
        .layer(middleware::from_fn(headers::add))
        .with_state(application)
}

async fn start_page(State(application): App) -> Response {
    page(&application, "index.html").await
}

// Every room has the same page. The page finds out whether the room exists.
async fn room_page(State(application): App, Path(room): Path<String>) -> Response {
    match RoomId::try_from(room) {
        Ok(_) => page(&application, "room.html").await,
        Err(error) => problem(StatusCode::NOT_FOUND, &format!("There is no such room: {error}.")),
    }
}

async fn file(State(application): App, Path(path): Path<String>) -> Response {
    page(&application, &format!("static/{path}")).await
}

async fn page(application: &Application, path: &str) -> Response {
    match application.pages.get(path).await {
        Some(page) => ([(CONTENT_TYPE, page.content_type)], page.content).into_response(),
        None => problem(StatusCode::NOT_FOUND, "There is no such file."),
    }
}

async fn make_room(State(application): App, Extension(client): Extension<Client>, headers: HeaderMap) -> Response {
    if let Err(wait) = application.new_rooms.take(application.source(&client, &headers), Instant::now()) {
        let seconds = wait.as_secs() + 1;
        let message = format!("You have made many rooms. Try again in {seconds} s.");
        return ([(RETRY_AFTER, seconds.to_string())], problem(StatusCode::TOO_MANY_REQUESTS, &message))
            .into_response();
    }
    match application.rooms.make() {
        Ok(room) => {
            let url = format!("/room/{room}");
            (StatusCode::CREATED, Json(json!({ "room": room, "url": url }))).into_response()
        }
        Err(error) => {
            if let NotMade::Random(_) = error {
                tracing::error!("no room was made: {error}");
            }
            problem(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
        }
    }
}

async fn web_socket(
    State(application): App,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if !is_same_origin(&headers) {
        return problem(StatusCode::FORBIDDEN, "Only the pages of this server may use its signalling.");
    }
    let source = application.source(&client, &headers);
    let place = client.is_proxy.then(|| application.forwarded.take(Some(source)));
    if let Some(None) = place {
        let message = "Your address has too many connections to this server. Close some, and try again.";
        return problem(StatusCode::SERVICE_UNAVAILABLE, message);
    }
    upgrade.max_message_size(message::LONGEST).max_frame_size(message::LONGEST).on_upgrade(move |socket| async move {
        signalling::serve(socket, source, application).await;
        drop((place, client.place));
    })
}

/// Whether a page of this server sent the request. A page of another one must not use the credentials of its user.
fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(origin), Some(host)) = (text(ORIGIN), text(HOST)) else { return false };
    origin.split_once("://").is_some_and(|(scheme, origin)| {
        matches!(scheme, "http" | "https") && !host.is_empty() && origin.eq_ignore_ascii_case(host)
    })
}

fn problem(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": message }))).into_response()
}
