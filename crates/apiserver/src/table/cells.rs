//! What several columns are made of: ages, selectors, lists.

use jiff::Timestamp;
use serde_json::{Value, json};
use stolos_k8s::meta;

/// How long ago an object was made.
pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    since(&json!(meta::creation_timestamp(object)), now)
}

/// How long ago a time was.
pub(super) fn since(at: &Value, now: Timestamp) -> Value {
    let at = at.as_str().and_then(|at| at.parse().ok());
    json!(at.map_or_else(|| "<unknown>".into(), |at| duration(now, at)))
}

/// How long ago, in kubectl's words: `5s`, `3m20s`, `47h`, `12d`.
pub(super) fn duration(now: Timestamp, at: Timestamp) -> String {
    let seconds = now.as_second() - at.as_second();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |a: i64, unit: &str, b: i64, sub: &str| {
        if b == 0 { format!("{a}{unit}") } else { format!("{a}{unit}{b}{sub}") }
    };
    match seconds {
        // Clocks may differ by a second or two, and no more.
        ..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// A number, zero where there is none.
pub(super) fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// A text, empty where there is none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A text, or words for its absence.
pub(super) fn text_or(value: &Value, absent: &str) -> Value {
    if text(value).is_empty() { json!(absent) } else { value.clone() }
}

/// The entries of a list, none where it is not there.
pub(super) fn list(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().map_or([].iter(), |list| list.iter())
}

/// How many entries a map or list has.
pub(super) fn count(value: &Value) -> usize {
    value.as_object().map_or_else(|| list(value).len(), serde_json::Map::len)
}

/// Names or images of a pod template's containers.
pub(super) fn containers(spec: &Value, field: &str) -> Value {
    json!(list(&spec["containers"]).map(|container| text(&container[field])).collect::<Vec<_>>().join(","))
}

/// Labels as `a=b,c=d`.
pub(super) fn labels(labels: &Value) -> Value {
    let pairs = labels.as_object().into_iter().flatten();
    let pairs: Vec<_> = pairs.map(|(key, value)| format!("{key}={}", text(value))).collect();
    json!(if pairs.is_empty() { "<none>".into() } else { pairs.join(",") })
}

/// A `LabelSelector` as `a=b,c in (d,e)`, empty where it selects everything.
pub(super) fn selector(selector: &Value) -> String {
    let exact = selector["matchLabels"].as_object().into_iter().flatten();
    let mut terms: Vec<(String, String)> =
        exact.map(|(key, value)| (key.clone(), format!("{key}={}", text(value)))).collect();
    for term in list(&selector["matchExpressions"]) {
        let key = text(&term["key"]);
        let mut values: Vec<_> = list(&term["values"]).map(text).collect();
        values.sort_unstable();
        let values = values.join(",");
        let said = match text(&term["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        terms.push((key.to_owned(), said));
    }
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    terms.into_iter().map(|(_, said)| said).collect::<Vec<_>>().join(",")
}

/// A `LabelSelector` in words.
pub(super) fn selector_or_none(value: &Value) -> Value {
    let said = selector(value);
    json!(if said.is_empty() { "<none>".to_owned() } else { said })
}

/// The first three of many, and how many more there are.
pub(super) fn some_of(all: &[String]) -> String {
    const MOST: usize = 3;
    match all.len() {
        0 => "<unset>".into(),
        1..=MOST => all.join(","),
        more => format!("{} + {} more...", all[..MOST].join(","), more - MOST),
    }
}

/// The status of a condition.
pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list(&object["status"]["conditions"]).find(|condition| condition["type"] == kind)
}

/// Whether a condition holds.
pub(super) fn holds(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|condition| condition["status"] == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_as_kubectl_says_them() {
        let now = Timestamp::from_second(1_000_000_000).unwrap();
        let ago = |seconds: i64| duration(now, Timestamp::from_second(1_000_000_000 - seconds).unwrap());
        let said: Vec<_> =
            [-5, -1, 5, 119, 200, 700, 11_000, 50_000, 200_000, 900_000, 99_999_999, 300_000_000].map(ago).into();
        assert_eq!(
            said,
            ["<invalid>", "0s", "5s", "119s", "3m20s", "11m", "3h3m", "13h", "2d7h", "10d", "3y62d", "9y"]
        );
    }

    #[test]
    fn selectors_as_kubectl_says_them() {
        let given = json!({"matchLabels": {"b": "1", "a": "2"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["y", "x"]}, {"key": "aa", "operator": "DoesNotExist"},
            {"key": "d", "operator": "Exists"}, {"key": "e", "operator": "NotIn", "values": ["z"]}]});
        assert_eq!(selector(&given), "a=2,!aa,b=1,c in (x,y),d,e notin (z)");
        assert_eq!(selector_or_none(&json!({})), "<none>");
        assert_eq!(some_of(&["1", "2", "3", "4", "5"].map(str::to_owned)), "1,2,3 + 2 more...");
    }
}
