//! Reports as people read them.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::Value;
use stolos_check::{
    EndpointState, Expiry, Pair, PeerStatus, ProxyReport, ProxyStatus, ServicesReport, StatusReport, Verdict,
    VerifyReport,
};

use crate::failure::plainly;
use crate::screen::{Output, Screen, Tone};

/// A table without lines: as little ink as possible.
pub(crate) fn table(header: &[&str]) -> Table {
    let words: Vec<_> = header.iter().map(|h| h.to_uppercase()).collect();
    named(words)
}

/// A table whose columns have names of people's own.
fn named(header: impl IntoIterator<Item = impl ToString>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.into_iter().map(|h| Cell::new(h.to_string())));
    table
}

/// Rows as text, as they are.
pub(crate) fn rows(columns: &[String], rows: &[Vec<String>], no_headers: bool) -> String {
    let mut table = named(columns);
    for row in rows {
        table.add_row(row);
    }
    let text = lines(&table);
    if no_headers { text.split_once('\n').map(|(_, rest)| rest.to_owned()).unwrap_or_default() } else { text }
}

/// The table as text, without the blanks at both ends of its lines.
pub(crate) fn lines(table: &Table) -> String {
    table.to_string().lines().map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line).trim_end())).collect()
}

fn verdict(screen: &Screen, verdict: Verdict) -> String {
    match verdict {
        Verdict::Pass => screen.data_tone(Tone::Good, "pass"),
        Verdict::Fail => screen.data_tone(Tone::Bad, "FAIL"),
        Verdict::Permissive => screen.data_tone(Tone::Warn, "permissive"),
    }
}

fn endpoints(screen: &Screen, state: EndpointState) -> String {
    match state {
        EndpointState::Held => "held".to_owned(),
        EndpointState::Missing => screen.data_tone(Tone::Bad, "missing"),
        EndpointState::Unhealthy => screen.data_tone(Tone::Bad, "unhealthy"),
        EndpointState::NotMeasured => screen.data_tone(Tone::Warn, "not measured"),
    }
}

/// What `verify` found: one line per pair, or the matrix alone.
pub(crate) fn verify(screen: &Screen, report: &VerifyReport, output: Output) -> String {
    let mut text = String::new();
    let header = ["from", "to", "answered", "failed", "identity", "gateway", "endpoints", "p50", "p99", "verdict"];
    let mut pairs = table(&header);
    for pair in &report.pairs {
        let millis = |of: fn(&stolos_check::Latency) -> f64| {
            pair.latency_ms.as_ref().map_or("-".to_owned(), |l| format!("{:.1} ms", of(l)))
        };
        let identity = pair.identity.as_deref().unwrap_or("-");
        let identity =
            if output == Output::Wide { identity } else { identity.strip_prefix("spiffe://").unwrap_or(identity) };
        pairs.add_row(vec![
            Cell::new(&pair.from),
            Cell::new(&pair.to),
            Cell::new(format!("{}/{}", pair.answered, pair.requests)).set_alignment(CellAlignment::Right),
            Cell::new(pair.failed).set_alignment(CellAlignment::Right),
            Cell::new(identity),
            Cell::new(pair.gateway.as_deref().unwrap_or("direct")),
            Cell::new(endpoints(screen, pair.endpoints.state)),
            Cell::new(millis(|l| l.p50)).set_alignment(CellAlignment::Right),
            Cell::new(millis(|l| l.p99)).set_alignment(CellAlignment::Right),
            Cell::new(verdict(screen, pair.verdict)),
        ]);
    }
    text += &lines(&pairs);
    for pair in report.pairs.iter().filter(|p| !p.why.is_empty()) {
        text += &format!("  {} → {}: {}\n", pair.from, pair.to, pair.why.join("; "));
    }
    // One proxy is asked for all pairs of a caller.
    for pair in callers(report) {
        if let Some(reason) = &pair.endpoints.reason {
            text += &format!("  {}: endpoints of its proxy not measured: {reason}\n", pair.from);
        }
    }
    if !report.refusals.is_empty() {
        text.push('\n');
        let mut refusals = table(&["must be refused", "at", "saw", "verdict"]);
        for refusal in &report.refusals {
            refusals.add_row(vec![
                Cell::new(&refusal.what),
                Cell::new(&refusal.cluster),
                Cell::new(&refusal.saw),
                Cell::new(verdict(screen, refusal.verdict)),
            ]);
        }
        text += &lines(&refusals);
    }
    text += &format!("\n{}\n", verdict_line(screen, report));
    text
}

/// The verdict, in one line.
pub(crate) fn verdict_line(screen: &Screen, report: &VerifyReport) -> String {
    let refused = report.refusals.iter().filter(|r| r.verdict != Verdict::Fail).count();
    let requests: usize = callers(report).map(|pair| pair.requests).sum();
    let summary = format!(
        "{} of {} pairs pass, {refused} of {} refusals hold; {requests} requests in {:.1} s",
        report.passed(),
        report.pairs.len(),
        report.refusals.len(),
        std::time::Duration::from_millis(report.duration_ms).as_secs_f64(),
    );
    match report.verdict {
        Verdict::Fail => format!("{} {summary}", screen.data_tone(Tone::Bad, "✗ not proven:")),
        _ => format!("{} {summary}", screen.data_tone(Tone::Good, "✓ proven:")),
    }
}

/// One pair of each caller: its requests are counted once, whoever answered.
fn callers(report: &VerifyReport) -> impl Iterator<Item = &Pair> {
    report.pairs.iter().filter(|pair| pair.from == pair.to)
}

/// Who reaches whom, as a square: callers are lines, answers are columns.
pub(crate) fn matrix(screen: &Screen, report: &VerifyReport) -> String {
    let mut names: Vec<&str> = Vec::new();
    for pair in &report.pairs {
        if !names.contains(&pair.from.as_str()) {
            names.push(&pair.from);
        }
    }
    let mut square = named(["FROM \\ TO"].into_iter().chain(names.iter().copied()));
    for from in &names {
        let mut row = vec![Cell::new(from)];
        for to in &names {
            let pair = report.pairs.iter().find(|p| p.from == *from && p.to == *to);
            row.push(Cell::new(pair.map_or(String::new(), |pair| {
                let (mark, tone) = if pair.verdict == Verdict::Fail { ("✗", Tone::Bad) } else { ("✓", Tone::Good) };
                let way = if pair.gateway.is_some() { "gateway" } else { "direct" };
                let time = pair.latency_ms.map_or(String::new(), |l| format!(" {:.1} ms", l.p50));
                format!("{} {way}{time}", screen.data_tone(tone, mark))
            })));
        }
        square.add_row(row);
    }
    lines(&square)
}

/// `verify` as test reports that CI systems read.
pub(crate) fn junit(report: &VerifyReport) -> String {
    let escape =
        |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    let mut cases = String::new();
    let mut case = |class: &str, name: &str, said: Option<(&str, &str)>| {
        let name = escape(name);
        cases += &match said {
            Some((what, why)) => {
                let why = escape(why);
                format!("  <testcase classname=\"{class}\" name=\"{name}\"><{what} message=\"{why}\"/></testcase>\n")
            }
            None => format!("  <testcase classname=\"{class}\" name=\"{name}\"/>\n"),
        };
    };
    for pair in &report.pairs {
        let why = pair.why.join("; ");
        let failed = (pair.verdict == Verdict::Fail).then_some(("failure", why.as_str()));
        // What was not measured is neither a success nor a failure; JUnit's word for that is skipped.
        let reason = pair.endpoints.reason.as_ref().map(|why| format!("endpoints not measured: {why}"));
        let skipped = reason.as_deref().map(|why| ("skipped", why));
        case("pair", &format!("{} to {}", pair.from, pair.to), failed);
        case(
            "endpoints",
            &format!("{} to {}", pair.from, pair.to),
            skipped.or(failed.filter(|_| pair.lacks_endpoints())),
        );
    }
    for refusal in &report.refusals {
        case(
            "refusal",
            &format!("{} at {}", refusal.what, refusal.cluster),
            (refusal.verdict == Verdict::Fail).then_some(("failure", &refusal.saw)),
        );
    }
    let skipped = report.pairs.iter().filter(|p| p.endpoints.reason.is_some()).count();
    let failures = report.pairs.iter().filter(|p| p.verdict == Verdict::Fail).count()
        + report.pairs.iter().filter(|p| p.lacks_endpoints()).count()
        + report.refusals.iter().filter(|r| r.verdict == Verdict::Fail).count();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"stolos verify {}\" tests=\"{}\" failures=\"{failures}\" skipped=\"{skipped}\" time=\"{:.3}\">\n{cases}</testsuite>\n",
        escape(&report.mesh),
        2 * report.pairs.len() + report.refusals.len(),
        std::time::Duration::from_millis(report.duration_ms).as_secs_f64(),
    )
}

/// What every proxy has: Istio's table, and, where one is meant, what was sent and taken.
pub(crate) fn proxies(screen: &Screen, report: &ProxyReport, output: Output, in_detail: bool) -> String {
    const TYPES: [&str; 5] = ["CDS", "LDS", "EDS", "RDS", "ECDS"];
    let mut header = vec!["name", "cluster", "cds", "lds", "eds", "rds", "ecds", "istiod", "version"];
    if output == Output::Wide {
        header.push("program");
    }
    let word = |proxy: &ProxyStatus, of: &str| {
        let Some(status) = proxy.types.get(of) else { return "-".to_owned() };
        match status.status.as_str() {
            "SYNCED" => screen.data_tone(Tone::Good, "SYNCED"),
            "ERROR" => screen.data_tone(Tone::Bad, "ERROR"),
            "STALE" => screen.data_tone(Tone::Warn, "STALE"),
            other => other.to_owned(),
        }
    };
    let mut all = table(&header);
    for proxy in &report.proxies {
        let mut row = vec![proxy.name.clone(), proxy.cluster.clone()];
        row.extend(TYPES.map(|of| word(proxy, of)));
        row.extend([proxy.istiod.clone(), proxy.version.clone()]);
        if output == Output::Wide {
            row.push(proxy.program.clone());
        }
        all.add_row(row);
    }
    let mut text = lines(&all);
    for proxy in report.proxies.iter().filter(|_| in_detail) {
        text += &format!("\n{} ({}) of {}\n", proxy.name, proxy.program, proxy.cluster);
        let mut types = table(&["type", "status", "sent", "taken", "refused"]);
        for of in TYPES {
            let Some(status) = proxy.types.get(of) else { continue };
            let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "-".to_owned());
            let refused = status.rejects.to_string();
            types.add_row(vec![of.to_owned(), word(proxy, of), version(&status.sent), version(&status.acked), refused]);
        }
        text += &lines(&types);
    }
    let errors = report.proxies.iter().flat_map(|proxy| {
        let of = |(of, status): (&&'static str, &stolos_check::TypeStatus)| {
            Some(format!("{} refuses its {of}: {}\n", proxy.name, status.error.as_ref()?))
        };
        proxy.types.iter().filter_map(of).collect::<Vec<_>>()
    });
    text.extend(errors);
    for (cluster, why) in &report.unanswered {
        text += &format!("{cluster}: {}\n", plainly(why));
    }
    text
}

/// What is there.
pub(crate) fn status(screen: &Screen, report: &StatusReport, output: Output) -> String {
    let mut header = vec!["cluster", "network", "control plane", "gateways", "peers", "expires", "age"];
    if output == Output::Wide {
        header.extend(["region", "version", "server"]);
    }
    let mut clusters = table(&header);
    let mut notes = Vec::new();
    for cluster in &report.clusters {
        if let Some(why) = &cluster.unreachable {
            notes.push(format!("{}: {}", cluster.name, plainly(why)));
        }
        if let Some(cut) = cluster.tunnel.as_ref().and_then(|tunnel| tunnel.cut.as_ref()) {
            notes.push(format!("{}: the others do not reach its API server through the hub: {cut}", cluster.name));
        }
        if let Some(label) = cluster.labelled_network.as_ref().filter(|label| **label != cluster.network) {
            notes.push(format!("{}: its namespace is labelled with the network `{label}`", cluster.name));
        }
        if let Some(since) = &cluster.drained {
            notes.push(format!(
                "{}: drained since {since}: the others do not send to it (`stolos cluster undrain {}`)",
                cluster.name, cluster.name
            ));
        }
        let control = match (&cluster.unreachable, &cluster.control_plane, &cluster.primary) {
            (Some(_), ..) => screen.data_tone(Tone::Bad, "unreachable"),
            (None, None, Some(primary)) => format!("remote of {primary}"),
            (None, None, None) => screen.data_tone(Tone::Warn, "none"),
            (None, Some(istiod), _) => {
                let tone = if istiod.ready >= istiod.replicas.max(1) { Tone::Good } else { Tone::Bad };
                screen.data_tone(tone, &format!("{}/{} ready", istiod.ready, istiod.replicas))
            }
        };
        let gateways: Vec<_> = cluster
            .gateways
            .iter()
            .map(|g| match g.addresses.as_slice() {
                [] => format!("no address ({} ready)", g.ready),
                addresses => format!("{} ({} ready)", addresses.join(" "), g.ready),
            })
            .collect();
        let asked = cluster.peers.iter().any(|p| p.sync.is_some());
        let synced = |p: &&PeerStatus| p.expected && p.credential && p.sync.as_deref() == Some("synced");
        let held = |p: &&PeerStatus| p.expected && p.credential;
        let expected = cluster.peers.iter().filter(|p| p.expected).count();
        let peers = match cluster.unreachable {
            Some(_) => "-".to_owned(),
            None if asked => format!("{}/{expected}", cluster.peers.iter().filter(synced).count()),
            // A remote reads nobody.
            None if expected == 0 => "-".to_owned(),
            // Where the control plane was not asked, a credential says nothing of a connection.
            None => format!("{} held/{expected}", cluster.peers.iter().filter(held).count()),
        };
        for peer in &cluster.peers {
            if let Some(state) = peer.sync.as_deref().filter(|state| *state != "synced") {
                notes.push(format!("{}: the connection to `{}` is `{state}`", cluster.name, peer.cluster));
            }
            let drained = report.clusters.iter().any(|c| c.name == peer.cluster && c.drained.is_some());
            match (peer.expected, peer.credential) {
                (true, false) if drained => {}
                (true, false) => notes.push(format!("{}: holds no credential for `{}`", cluster.name, peer.cluster)),
                (false, true) => notes.push(format!(
                    "{}: holds a credential for `{}`, which is not in the mesh",
                    cluster.name, peer.cluster
                )),
                _ => {}
            }
        }
        for words in cluster.not_supported.iter().flatten() {
            notes.push(format!("{}: {words}", cluster.name));
        }
        let expires = cluster.certificates.iter().filter_map(|c| Some((c.days_left?, &c.what))).min();
        let mut row = vec![
            Cell::new(&cluster.name),
            Cell::new(&cluster.network),
            Cell::new(control),
            Cell::new(if gateways.is_empty() { "-".to_owned() } else { gateways.join(", ") }),
            Cell::new(peers),
            Cell::new(expires.map_or("-".to_owned(), |(days, what)| format!("{days} d ({what})"))),
            Cell::new(format!("{} ms", cluster.age_ms)),
        ];
        if output == Output::Wide {
            row.push(Cell::new(cluster.region.as_deref().unwrap_or("-")));
            row.push(Cell::new(cluster.version.as_deref().unwrap_or("-")));
            row.push(Cell::new(&cluster.server));
        }
        clusters.add_row(row);
    }
    let mut text = format!("Mesh {}\n\n{}", screen.data_tone(Tone::Strong, &report.mesh), lines(&clusters));
    if !report.services.is_empty() {
        let names: Vec<_> = report.clusters.iter().map(|c| c.name.as_str()).collect();
        let mut services = named(["SERVICE"].into_iter().chain(names.iter().copied()));
        for service in &report.services {
            let mut row = vec![Cell::new(format!("{}.{}", service.name, service.namespace))];
            row.extend(
                names
                    .iter()
                    .map(|name| Cell::new(service.endpoints.get(*name).map_or("-".to_owned(), ToString::to_string))),
            );
            services.add_row(row);
        }
        text += &format!("\n{}", lines(&services));
    }
    for note in notes {
        text += &format!("\n{} {note}", screen.data_tone(Tone::Warn, "!"));
    }
    text
}

/// The registry listing.
pub(crate) fn services(screen: &Screen, report: &ServicesReport) -> String {
    let names: Vec<_> = report.clusters.iter().map(|c| c.name.as_str()).collect();
    let asked = report.clusters.iter().filter(|c| c.registry).count();
    let mut table = named(["HOST", "PORTS"].into_iter().chain(names.iter().copied()).chain(["REGISTRIES"]));
    let mut notes: Vec<String> = report
        .clusters
        .iter()
        .filter_map(|c| match &c.unreachable {
            Some(why) => Some(format!("{} was not asked: {why}", c.name)),
            None => (!c.registry)
                .then(|| format!("the registry of {} was not measured: its control plane did not show it", c.name)),
        })
        .collect();
    for service in &report.services {
        let ports = service.ports.iter().map(|port| match port.protocol.as_str() {
            "TCP" => port.port.to_string(),
            other => format!("{}/{other}", port.port),
        });
        let mut row = vec![Cell::new(&service.host), Cell::new(ports.collect::<Vec<_>>().join(","))];
        let count = |name: &&str| service.endpoints.get(*name).map_or("-".to_owned(), ToString::to_string);
        row.extend(names.iter().map(|name| Cell::new(count(name)).set_alignment(CellAlignment::Right)));
        let behind = service.behind(&report.clusters);
        row.push(Cell::new(match (asked, behind.is_empty()) {
            (0, _) => "-".to_owned(),
            (_, true) => screen.data_tone(Tone::Good, "same"),
            _ => screen.data_tone(Tone::Warn, &format!("{} of {asked} same", asked - behind.len())),
        }));
        table.add_row(row);
        notes.extend(behind.into_iter().map(|cluster| {
            let has = service.registries.get(cluster).into_iter().flatten();
            let has: Vec<_> = has.map(|(of, count)| format!("{count} in {of}")).collect();
            let has = if has.is_empty() { "nothing".to_owned() } else { has.join(", ") };
            format!("{}: the registry of {cluster} has {has}", service.host)
        }));
    }
    let mut text = lines(&table);
    for note in notes {
        text += &format!("\n{} {note}", screen.data_tone(Tone::Warn, "!"));
    }
    text
}

/// Everything that expires.
pub(crate) fn certificates(list: &[Expiry], output: Output) -> String {
    let wide = output == Output::Wide;
    let mut header = vec!["days left", "ends", "cluster", "what", "sha256"];
    if wide {
        header.extend(["begins", "serial", "issuer"]);
    }
    let mut certificates = table(&header);
    for Expiry { cluster, certificate } in list {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let print = or_none(&certificate.fingerprint);
        let mut row = vec![
            Cell::new(certificate.days_left.map_or("never".to_owned(), |d| d.to_string()))
                .set_alignment(CellAlignment::Right),
            Cell::new(or_none(&certificate.not_after)),
            Cell::new(cluster),
            Cell::new(&certificate.what),
            Cell::new(if wide { print } else { print.chars().take(16).collect() }),
        ];
        if wide {
            let more = [&certificate.not_before, &certificate.serial, &certificate.issuer];
            row.extend(more.map(|text| Cell::new(or_none(text))));
        }
        certificates.add_row(row);
    }
    lines(&certificates)
}

/// What is in a lab.
pub(crate) fn lab(screen: &Screen, status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut clusters = table(&["cluster", "context", "network", "server", "pods", "state"]);
    let mut balancers = table(&["cluster", "service", "address", "ports"]);
    let mut moved = false;
    for cluster in list(&status["clusters"]) {
        let state = match (cluster["running"].as_bool(), cluster["cutOff"].as_bool()) {
            (Some(false), _) => screen.data_tone(Tone::Bad, "killed"),
            (_, Some(true)) => screen.data_tone(Tone::Warn, "cut off"),
            _ => screen.data_tone(Tone::Good, "running"),
        };
        clusters.add_row(vec![
            Cell::new(text(&cluster["name"])),
            Cell::new(text(&cluster["context"])),
            Cell::new(text(&cluster["network"])),
            Cell::new(text(&cluster["server"])),
            Cell::new(&cluster["pods"]).set_alignment(CellAlignment::Right),
            Cell::new(state),
        ]);
        for balancer in list(&cluster["loadBalancers"]) {
            let ports = list(&balancer["ports"]);
            let ports = ports.iter().map(|port| match (port["port"].as_u64(), port["socket"].as_u64()) {
                (Some(port), Some(socket)) if port != socket => {
                    moved = true;
                    format!("{port} (at {socket})")
                }
                (port, _) => port.unwrap_or_default().to_string(),
            });
            balancers.add_row(vec![
                text(&cluster["name"]),
                format!("{}/{}", text(&balancer["namespace"]), text(&balancer["service"])),
                text(&balancer["address"]),
                ports.collect::<Vec<_>>().join(" "),
            ]);
        }
    }
    let mut out = format!("Lab {} (process {})\n\n{}", text(&status["name"]), status["pid"], lines(&clusters));
    if !balancers.is_empty() {
        out += &format!("\n{}", lines(&balancers));
    }
    if moved {
        out +=
            "\nPorts below 1024 need rights that a lab does not ask for: their sockets are where the brackets say.\n";
    }
    let faults: Vec<stolos_lab::Fault> = serde_json::from_value(status["faults"].clone()).unwrap_or_default();
    if !faults.is_empty() {
        out += "\nFaults in effect (`stolos lab fault heal` ends them):\n";
        out.extend(faults.iter().map(|fault| format!("  {}\n", screen.data_tone(Tone::Warn, &fault.in_words()))));
    }
    for refusal in list(&status["refusals"]) {
        let (from, to) = (text(&refusal["from"]), text(&refusal["to"]));
        out +=
            &format!("{} connections from {from} to {to} refused: no way between their networks\n", refusal["count"]);
    }
    out
}

#[cfg(test)]
mod tests {
    use stolos_check::{Endpoints, Latency, Refusal};

    use super::*;
    use crate::screen::Color;

    fn pair(from: &str, to: &str, gateway: Option<&str>, why: &[&str]) -> Pair {
        Pair {
            from: from.into(),
            to: to.into(),
            requests: 60,
            answered: 20,
            failed: 0,
            identity: Some("spiffe://cluster.local/ns/sample/sa/helloworld".into()),
            gateway: gateway.map(str::to_owned),
            endpoints: match (from, to) {
                ("west", "west") => Endpoints { reason: Some("forbidden".into()), ..Endpoints::default() },
                ("west", "east") => Endpoints { state: EndpointState::Missing, ..Endpoints::default() },
                _ => Endpoints { state: EndpointState::Held, ..Endpoints::default() },
            },
            latency_ms: Some(Latency { p50: 0.81, p99: 2.14 }),
            verdict: if why.is_empty() { Verdict::Pass } else { Verdict::Fail },
            why: why.iter().map(|w| (*w).to_owned()).collect(),
        }
    }

    fn report() -> VerifyReport {
        VerifyReport {
            api_version: "stolos.dev/v1alpha1",
            kind: "VerifyReport",
            mesh: "my<mesh>".into(),
            verdict: Verdict::Fail,
            pairs: vec![
                pair("east", "east", None, &[]),
                pair("east", "west", Some("127.31.0.1:15443"), &[]),
                pair("west", "east", None, &["went direct", "a gateway was planned"]),
                pair("west", "west", None, &[]),
            ],
            refusals: vec![Refusal {
                what: "plaintext client".into(),
                cluster: "west".into(),
                verdict: Verdict::Pass,
                saw: "connection reset".into(),
            }],
            started_at: "2026-01-01T00:00:00Z".into(),
            duration_ms: 1234,
        }
    }

    #[test]
    fn a_report_is_a_table_a_matrix_and_a_verdict() {
        let screen = Screen::new(Color::Never, true);
        insta::assert_snapshot!(verify(&screen, &report(), Output::Table), @r#"
        FROM  TO    ANSWERED  FAILED  IDENTITY                               GATEWAY           ENDPOINTS     P50     P99     VERDICT
        east  east     20/60       0  cluster.local/ns/sample/sa/helloworld  direct            held          0.8 ms  2.1 ms  pass
        east  west     20/60       0  cluster.local/ns/sample/sa/helloworld  127.31.0.1:15443  held          0.8 ms  2.1 ms  pass
        west  east     20/60       0  cluster.local/ns/sample/sa/helloworld  direct            missing       0.8 ms  2.1 ms  FAIL
        west  west     20/60       0  cluster.local/ns/sample/sa/helloworld  direct            not measured  0.8 ms  2.1 ms  pass
          west → east: went direct; a gateway was planned
          west: endpoints of its proxy not measured: forbidden

        MUST BE REFUSED   AT    SAW               VERDICT
        plaintext client  west  connection reset  pass

        ✗ not proven: 3 of 4 pairs pass, 1 of 1 refusals hold; 120 requests in 1.2 s
        "#);
        insta::assert_snapshot!(matrix(&screen, &report()), @r#"
        FROM \ TO  east             west
        east       ✓ direct 0.8 ms  ✓ gateway 0.8 ms
        west       ✗ direct 0.8 ms  ✓ direct 0.8 ms
        "#);
    }

    #[test]
    fn a_report_is_test_results_too() {
        insta::assert_snapshot!(junit(&report()), @r#"
        <?xml version="1.0" encoding="UTF-8"?>
        <testsuite name="stolos verify my&lt;mesh&gt;" tests="9" failures="2" skipped="1" time="1.234">
          <testcase classname="pair" name="east to east"/>
          <testcase classname="endpoints" name="east to east"/>
          <testcase classname="pair" name="east to west"/>
          <testcase classname="endpoints" name="east to west"/>
          <testcase classname="pair" name="west to east"><failure message="went direct; a gateway was planned"/></testcase>
          <testcase classname="endpoints" name="west to east"><failure message="went direct; a gateway was planned"/></testcase>
          <testcase classname="pair" name="west to west"/>
          <testcase classname="endpoints" name="west to west"><skipped message="endpoints not measured: forbidden"/></testcase>
          <testcase classname="refusal" name="plaintext client at west"/>
        </testsuite>
        "#);
    }
}
