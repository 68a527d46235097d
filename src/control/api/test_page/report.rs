//! The report of a test page. A page sends it, so it is checked before the operator sees it.

use serde_json::{Map, Value, json};

/// The most ways to the server in a report.
const WAYS: usize = 64;
/// The most errors of a way.
const ERRORS: usize = 16;
/// The longest text in characters.
const LONGEST: usize = 512;

const STEPS: [&str; 6] = ["gather", "connect", "data", "video", "throughput", "done"];
/// Times in milliseconds, parts in percent, a rate in kbit/s, and a number of frames.
const NUMBERS: [&str; 9] = [
    "gather_ms",
    "connect_ms",
    "rtt_median_ms",
    "rtt_p95_ms",
    "jitter_ms",
    "loss_percent",
    "throughput_kbps",
    "video_frames",
    "video_loss_percent",
];

/// Returns a report with its known fields only.
///
/// # Errors
/// What is wrong.
pub(super) fn checked(report: &Value) -> Result<Value, String> {
    let report = report.as_object().ok_or("the report is not an object")?;
    let ways = report.get("ways").and_then(Value::as_array).ok_or("the report has no list of ways")?;
    if ways.is_empty() || ways.len() > WAYS {
        return Err(format!("the report has no way, or more than {WAYS}"));
    }
    let ways = ways.iter().map(way).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({ "browser": text(report, "browser")?, "verdict": verdict(report, &ways), "ways": ways }))
}

/// Returns the verdict about checked ways. That of the page can only be worse: it knows of ways that it has not tested.
fn verdict(report: &Map<String, Value>, ways: &[Value]) -> &'static str {
    let is_ok = |way: &&Value| way.get("ok") == Some(&Value::Bool(true));
    let is_partial = report.get("verdict").is_some_and(|verdict| verdict == "partial");
    match ways.iter().filter(is_ok).count() {
        0 => "failed",
        all if all == ways.len() && !is_partial => "ok",
        _ => "partial",
    }
}

fn way(way: &Value) -> Result<Value, String> {
    let way = way.as_object().ok_or("a way is not an object")?;
    let mut checked = Map::new();
    checked.insert("url".to_owned(), text(way, "url")?);
    let ok = way.get("ok").and_then(Value::as_bool).ok_or("a way has no `ok`")?;
    checked.insert("ok".to_owned(), ok.into());
    checked.insert("step".to_owned(), one_of(way, "step", &STEPS)?);
    for name in ["reason", "relayed", "protocol"] {
        if way.get(name).is_some_and(|value| !value.is_null()) {
            checked.insert(name.to_owned(), text(way, name)?);
        }
    }
    for name in NUMBERS {
        match way.get(name) {
            None | Some(Value::Null) => {}
            Some(value) => {
                let number = value.as_f64().filter(|number| (0.0..1e12).contains(number));
                let number = number.ok_or_else(|| format!("`{name}` is not a number that is not negative"))?;
                checked.insert(name.to_owned(), number.into());
            }
        }
    }
    if let Some(errors) = way.get("errors") {
        let errors = errors.as_array().filter(|errors| errors.len() <= ERRORS).ok_or("too many errors")?;
        checked.insert("errors".to_owned(), errors.iter().map(error).collect::<Result<_, _>>()?);
    }
    Ok(checked.into())
}

fn error(error: &Value) -> Result<Value, String> {
    let error = error.as_object().ok_or("an error is not an object")?;
    let code = error.get("code").and_then(Value::as_u64).filter(|code| *code < 1000).ok_or("an error has no code")?;
    Ok(json!({ "code": code, "text": text(error, "text")? }))
}

fn text(object: &Map<String, Value>, name: &str) -> Result<Value, String> {
    let text = object.get(name).and_then(Value::as_str).ok_or_else(|| format!("there is no text `{name}`"))?;
    if text.chars().nth(LONGEST).is_some() {
        return Err(format!("`{name}` has more than {LONGEST} characters"));
    }
    Ok(text.into())
}

fn one_of(object: &Map<String, Value>, name: &str, words: &[&str]) -> Result<Value, String> {
    let word = object.get(name).and_then(Value::as_str).filter(|word| words.contains(word));
    word.map(Value::from).ok_or_else(|| format!("`{name}` is none of {}", words.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Value {
        json!({ "browser": "B", "verdict": "partial", "ways": [
            { "url": "turn:a:1", "ok": true, "step": "done", "rtt_median_ms": 1.5, "jitter_ms": null },
            { "url": "turns:a:2", "ok": false, "step": "gather", "reason": "r", "errors": [{ "code": 701, "text": "t" }] },
        ] })
    }

    #[test]
    fn known_fields_stay_and_others_go() {
        let mut sent = report();
        let mut expected = report();
        expected["ways"][0].as_object_mut().unwrap().remove("jitter_ms");
        sent["more"] = json!("x");
        sent["verdict"] = json!("ok");
        sent["ways"][1]["more"] = json!([1]);
        assert_eq!(checked(&sent), Ok(expected));
        for (ok, verdict) in [([true, true], "ok"), ([false, false], "failed")] {
            [sent["ways"][0]["ok"], sent["ways"][1]["ok"]] = ok.map(Value::Bool);
            assert_eq!(checked(&sent).unwrap()["verdict"], verdict);
        }
        [sent["ways"][0]["ok"], sent["ways"][1]["ok"]] = [json!(true), json!(true)];
        sent["verdict"] = json!("partial");
        assert_eq!(checked(&sent).unwrap()["verdict"], "partial", "other ways were not tested");
    }

    #[test]
    fn a_wrong_or_unbounded_report_is_refused() {
        let long = "ü".repeat(LONGEST + 1);
        for (pointer, value, part) in [
            ("", json!([]), "not an object"),
            ("/ways", json!({}), "no list"),
            ("/ways", json!(vec![1; WAYS + 1]), "more than 64"),
            ("/ways/0", json!(1), "not an object"),
            ("/browser", json!(long), "more than 512"),
            ("/ways", json!([]), "no way"),
            ("/ways/0/ok", json!(1), "`ok`"),
            ("/ways/0/step", json!("x"), "`step`"),
            ("/ways/0/rtt_median_ms", json!(-1), "`rtt_median_ms`"),
            ("/ways/0/rtt_median_ms", json!("1"), "`rtt_median_ms`"),
            ("/ways/1/reason", json!(7), "`reason`"),
            ("/ways/1/errors", json!(vec![json!({ "code": 1, "text": "" }); ERRORS + 1]), "too many"),
            ("/ways/1/errors/0/code", json!(1000), "code"),
        ] {
            let mut report = report();
            *report.pointer_mut(pointer).unwrap() = value;
            let why = checked(&report).unwrap_err();
            assert!(why.contains(part), "{pointer}: {why}");
        }
    }
}
