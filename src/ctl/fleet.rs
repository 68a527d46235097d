//! `turnserver ctl --fleet`: the commands for all nodes of a fleet, through the server at the socket.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use hyper::Method;
use serde_json::{Map, Value, json};
use turnserver::clock;

use super::client::{Client, Failure};
use super::text::{Table, bit_rate, bytes, counted, list, number, printable, text};
use super::views::session_table;
use super::{Arguments, Command, Kick, Output, SecretCommand, Sessions, TOP};

/// The most sessions that a node lists.
const PAGE: u64 = 1_000;
/// The longest file of a secret in bytes.
const MAX_SECRET: u64 = 4_096;

/// Carries out a command for all nodes, or for the one of `--node`.
pub(crate) async fn execute(arguments: &Arguments, socket: &Path) -> Result<Output, Failure> {
    let node = arguments.node.as_deref();
    if let Command::Status { .. } | Command::Revoke { .. } | Command::Secret { .. } = &arguments.command
        && node.is_some()
    {
        return Err(Failure::Usage("--node goes with sessions, top, kick, drain and resume".to_owned()));
    }
    let client = &mut Client::connect(socket).await?;
    match &arguments.command {
        Command::Status { wait: false } => {
            let fleet = client.get("/v1/fleet").await?;
            Ok(Output::new(nodes(&fleet), fleet))
        }
        Command::Sessions(wanted) => sessions(client, node, wanted).await,
        Command::Top => {
            let (sessions, gaps) = all_sessions(client, node, &json!({}), None).await?;
            let users = users(&sessions);
            Ok(Output { text: users_table(&users), json: json!({ "users": users }), gaps })
        }
        Command::Kick(kick) => {
            if kick.id.is_some() && node.is_none() {
                return Err(Failure::Usage("the ID of a session is that of one node: name it with --node".to_owned()));
            }
            let Kick { id, user, client: prefix, peer } = kick;
            let with = without_null(json!({ "session": id, "user": user, "client": prefix, "peer": peer }));
            let responses = order(client, "kick", node, &with).await?;
            let ended: u64 = results(&responses).map(|(_, result)| number(result, "ended")).sum();
            Ok(of_responses(format!("ended {}", counted(ended, "session")), responses))
        }
        Command::Drain { wait: false, all: false } if node.is_none() => Err(Failure::Usage(
            "--fleet drain needs --node NAME: each node that drains stops after its last session. To drain all nodes, \
             add --all"
                .to_owned(),
        )),
        Command::Drain { all: true, .. } if node.is_some() => {
            Err(Failure::Usage("--node and --all exclude each other".to_owned()))
        }
        Command::Drain { wait: false, .. } | Command::Resume => {
            let (verb, done) = match &arguments.command {
                Command::Resume => ("resume", "make new allocations"),
                _ => ("drain", "drain, and stop when their last sessions have ended"),
            };
            let responses = order(client, verb, node, &json!({})).await?;
            let count = counted(results(&responses).count() as u64, "node");
            let left: u64 = results(&responses).map(|(_, result)| number(result, "allocations")).sum();
            Ok(of_responses(format!("{count} now {done}; {} there", counted(left, "session")), responses))
        }
        Command::Revoke { username, until, end } => {
            let end = end.then_some(true);
            let with = without_null(json!({ "username": username, "until": until, "end": end }));
            let done = if end.is_some() { "can be used again" } else { "is revoked" };
            Ok(of_state(&format!("{} {done}", printable(username)), order(client, "revoke", None, &with).await?))
        }
        Command::Secret { command } => secret(client, command).await,
        _ => Err(Failure::Usage(
            "--fleet goes with status, sessions, top, kick, revoke, drain, resume and secret".to_owned(),
        )),
    }
}

async fn order(client: &mut Client, order: &str, node: Option<&str>, with: &Value) -> Result<Value, Failure> {
    let body = json!({ "order": order, "node": node, "with": with });
    client.send(Method::POST, "/v1/fleet/orders", Some(body)).await
}

fn without_null(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>().into(),
        other => other,
    }
}

/// Returns the nodes that have carried out an order, and their results.
fn results(responses: &Value) -> impl Iterator<Item = (&str, &Value)> {
    list(responses, "responses").iter().filter_map(|response| Some((text(response, "node"), response.get("result")?)))
}

/// Returns why the result of an order is incomplete.
fn gaps(responses: &Value) -> Vec<String> {
    let refused = list(responses, "responses").iter().filter(|response| response.get("result").is_none());
    let refused = refused
        .map(|response| format!("{}: {}", printable(text(response, "node")), printable(text(response, "error"))));
    refused.chain(missing(responses)).collect()
}

fn missing(value: &Value) -> Option<String> {
    let nodes: Vec<String> = list(value, "missing_nodes").iter().filter_map(Value::as_str).map(printable).collect();
    (!nodes.is_empty()).then(|| format!("no response from {}", nodes.join(", ")))
}

fn of_responses(line: String, responses: Value) -> Output {
    let gaps = gaps(&responses);
    Output { text: vec![line], json: responses, gaps }
}

/// Returns the result of a change that all nodes use.
fn of_state(done: &str, result: Value) -> Output {
    let nodes = list(&result, "nodes").len() as u64;
    let gaps = missing(&result).map(|missing| format!("{missing}: they will use it when they are back"));
    Output {
        text: vec![format!("{done} ({})", counted(nodes, "node"))],
        gaps: gaps.into_iter().collect(),
        json: result,
    }
}

/// Returns the lines of `--fleet status`.
fn nodes(fleet: &Value) -> Vec<String> {
    let mut table =
        Table::new(&["NODE", "REGION", ">SESSIONS", ">FREE PORTS", ">RATE", ">CPU", ">WEIGHT", "STATE", "VERSION"]);
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let rate = |value: &Value| bit_rate(number(value, "bits_per_second") as f64 / 8.0);
    for node in list(fleet, "nodes") {
        let cpu = node.get("cpu").and_then(Value::as_f64).unwrap_or_default();
        let draining = node.get("draining").and_then(Value::as_bool).unwrap_or_default();
        table.row(vec![
            text(node, "name").to_owned(),
            text(node, "region").to_owned(),
            number(node, "allocations").to_string(),
            number(node, "free_ports").to_string(),
            rate(node),
            format!("{:.0} %", cpu * 100.0),
            number(node, "weight").to_string(),
            if draining { "draining" } else { "up" }.to_owned(),
            text(node, "version").to_owned(),
        ]);
    }
    let mut lines = table.lines();
    let totals = fleet.get("totals").unwrap_or(&Value::Null);
    lines.push(format!(
        "{}: {}, {}",
        counted(number(totals, "nodes"), "node"),
        counted(number(totals, "allocations"), "session"),
        rate(totals)
    ));
    if fleet.get("connected").and_then(Value::as_bool) != Some(true) {
        lines.push("the engine of the fleet cannot be reached: this is the last view".to_owned());
    }
    lines
}

/// Returns the sessions of all nodes, each with its node, and what is missing. With a limit, each node lists at most as
/// many.
async fn all_sessions(
    client: &mut Client,
    node: Option<&str>,
    with: &Value,
    limit: Option<u64>,
) -> Result<(Vec<Value>, Vec<String>), Failure> {
    let page = |cursor: Option<&str>| {
        let mut with = with.clone();
        if let Some(fields) = with.as_object_mut() {
            fields.insert("limit".to_owned(), limit.unwrap_or(PAGE).into());
            fields.extend(cursor.map(|cursor| ("cursor".to_owned(), cursor.into())));
        }
        with
    };
    let mut responses = order(client, "sessions", node, &page(None)).await?;
    let (mut all, mut gaps) = (Vec::new(), gaps(&responses));
    loop {
        let mut further = Vec::new();
        for (node, result) in results(&responses) {
            all.extend(list(result, "sessions").iter().cloned().map(|mut session| {
                if let Some(fields) = session.as_object_mut() {
                    fields.insert("node".to_owned(), node.into());
                }
                session
            }));
            let next = result.get("next").and_then(Value::as_str);
            further.extend(next.map(|next| (node.to_owned(), next.to_owned())));
        }
        if limit.is_some() {
            // The greatest ones have no next page.
            gaps.extend(further.iter().map(|(node, _)| format!("{} has further sessions", printable(node))));
            return Ok((all, gaps));
        }
        if further.is_empty() {
            return Ok((all, gaps));
        }
        let mut pages = Vec::new();
        for (node, next) in further {
            let response = order(client, "sessions", Some(&node), &page(Some(&next))).await?;
            gaps.extend(self::gaps(&response));
            pages.extend(list(&response, "responses").iter().cloned());
        }
        responses = json!({ "responses": pages });
    }
}

/// Lists the sessions of all nodes. With --limit, each node lists at most as many.
async fn sessions(client: &mut Client, node: Option<&str>, wanted: &Sessions) -> Result<Output, Failure> {
    let Sessions { user, client: prefix, peer, top, limit } = wanted;
    let limit = limit.map(u64::from).or(top.map(|_| TOP as u64));
    if let Some(limit) = limit.filter(|limit| *limit > PAGE) {
        return Err(Failure::Usage(format!("--limit {limit}: with --fleet it is at most {PAGE} for each node")));
    }
    let top = top.map(super::Top::name);
    let with = without_null(json!({ "user": user, "client": prefix, "peer": peer, "top": top }));
    let (mut all, gaps) = all_sessions(client, node, &with, limit).await?;
    if let Some(top) = top {
        let sum = |session: &Value, unit: &str| {
            number(session, &format!("{unit}_to_peers")) + number(session, &format!("{unit}_to_client"))
        };
        all.sort_by_key(|session| Reverse(if top == "age" { number(session, "age") } else { sum(session, top) }));
        all.truncate(limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX));
    }
    let mut lines = session_table(&all, &["NODE"], |session| vec![text(session, "node").to_owned()]).lines();
    lines.push(counted(all.len() as u64, "session"));
    Ok(Output { text: lines, json: json!({ "sessions": all }), gaps })
}

/// Returns the users with the most traffic.
fn users(sessions: &[Value]) -> Vec<Value> {
    #[derive(Default)]
    struct User {
        sessions: u64,
        to_peers: u64,
        to_client: u64,
        nodes: Vec<String>,
    }
    let mut users: BTreeMap<&str, User> = BTreeMap::new();
    for session in sessions {
        let (user, node) = (users.entry(text(session, "user")).or_default(), text(session, "node"));
        user.sessions += 1;
        user.to_peers += number(session, "bytes_to_peers");
        user.to_client += number(session, "bytes_to_client");
        if !user.nodes.iter().any(|own| own == node) {
            user.nodes.push(node.to_owned());
        }
    }
    let mut users: Vec<(&str, User)> = users.into_iter().collect();
    users.sort_by_key(|(_, user)| Reverse(user.to_peers + user.to_client));
    let user = |(name, user): (&str, User)| {
        json!({
            "user": name,
            "sessions": user.sessions,
            "bytes_to_peers": user.to_peers,
            "bytes_to_client": user.to_client,
            "nodes": user.nodes,
        })
    };
    users.into_iter().take(TOP).map(user).collect()
}

fn users_table(users: &[Value]) -> Vec<String> {
    let mut table = Table::new(&["USER", ">SESSIONS", ">TO PEERS", ">TO CLIENT", "NODES"]);
    for user in users {
        let nodes: Vec<&str> = list(user, "nodes").iter().filter_map(Value::as_str).collect();
        table.row(vec![
            text(user, "user").to_owned(),
            number(user, "sessions").to_string(),
            bytes(number(user, "bytes_to_peers")),
            bytes(number(user, "bytes_to_client")),
            nodes.join(", "),
        ]);
    }
    table.lines()
}

async fn secret(client: &mut Client, command: &SecretCommand) -> Result<Output, Failure> {
    match command {
        SecretCommand::Add { id, file, from } => {
            let with = without_null(json!({ "id": id, "secret": read_secret(file)?, "from": from }));
            let result = order(client, "secret-add", None, &with).await?;
            Ok(of_state(&format!("the nodes accept the secret {}", printable(id)), result))
        }
        SecretCommand::Retire { id, at } => {
            let result = order(client, "secret-retire", None, &without_null(json!({ "id": id, "at": at }))).await?;
            let now = clock::unix_seconds();
            let when = match number(&result, "until") {
                until if until > now => format!("in {}", super::text::duration(until - now)),
                _ => "now".to_owned(),
            };
            Ok(of_state(&format!("the secret {} ends {when}", printable(id)), result))
        }
        SecretCommand::List => {
            let secrets = order(client, "secrets", None, &json!({})).await?;
            Ok(Output::new(secrets_table(&secrets, clock::unix_seconds()), secrets))
        }
    }
}

fn secrets_table(secrets: &Value, now: u64) -> Vec<String> {
    let mut table = Table::new(&["SECRET", "ACCEPTED", "MAKES CREDENTIALS", "ENDS"]);
    for secret in list(secrets, "secrets") {
        let yes = |field: &str| {
            let is = secret.get(field).and_then(Value::as_bool).unwrap_or_default();
            if is { "yes" } else { "no" }.to_owned()
        };
        let ends = match secret.get("until").and_then(Value::as_u64) {
            Some(until) if until > now => format!("in {}", super::text::duration(until - now)),
            Some(_) => "ended".to_owned(),
            None => String::new(),
        };
        table.row(vec![text(secret, "id").to_owned(), yes("accepted"), yes("makes_credentials"), ends]);
    }
    table.lines()
}

/// Reads a secret from a file, or from standard input (`-`). It must not be an argument, which other users see.
fn read_secret(file: &Path) -> Result<String, Failure> {
    let shown = file.display();
    let wrong = |error: io::Error| Failure::Usage(format!("cannot read the secret from {shown}: {error}"));
    let mut secret = String::new();
    if file == Path::new("-") {
        io::stdin().lock().take(MAX_SECRET + 1).read_to_string(&mut secret).map_err(wrong)?;
    } else {
        fs::File::open(file).and_then(|file| file.take(MAX_SECRET + 1).read_to_string(&mut secret)).map_err(wrong)?;
    }
    if secret.len() as u64 > MAX_SECRET {
        return Err(Failure::Usage(format!("{shown} is longer than {MAX_SECRET} bytes")));
    }
    let secret = secret.trim();
    if secret.is_empty() || secret.contains('\n') {
        return Err(Failure::Usage(format!("{shown} must contain one secret and nothing else")));
    }
    Ok(secret.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_summed_over_nodes() {
        let session = |node: &str, user: &str, bytes: u64| json!({ "node": node, "user": user, "bytes_to_peers": bytes, "bytes_to_client": 1 });
        let users = users(&[session("a", "ann", 5), session("a", "bob", 9), session("b", "ann", 7)]);
        let responses = json!({ "responses": [
            { "node": "a", "ok": true, "result": {} },
            { "node": "c", "ok": false, "error": "stalled" },
        ], "missing_nodes": ["d"] });
        assert_eq!(
            users[0],
            json!({ "user": "ann", "sessions": 2, "bytes_to_peers": 12, "bytes_to_client": 2, "nodes": ["a", "b"] })
        );
        assert_eq!(gaps(&responses), ["c: stalled", "no response from d"]);
    }
}
