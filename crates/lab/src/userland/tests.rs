//! What people type, and what comes out.

use super::*;
use std::net::SocketAddr;
use stolos_serve::HostNet;
use tokio::net::TcpListener;

/// Runs `sh -c text` and shows output, errors and status.
async fn shell(text: &str) -> (String, String, i32) {
    with_input(text, "").await
}

async fn with_input(text: &str, input: &str) -> (String, String, i32) {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("tmp")).unwrap();
    let (out, err) = (pipe(), pipe());
    let process = Process {
        net: Arc::new(HostNet::default()),
        root: root.path().to_owned(),
        directory: "/".into(),
        env: BTreeMap::from([("WHO".to_owned(), "me".to_owned())]),
        hostname: "pod-1".to_owned(),
        stdin: Source::new(std::io::Cursor::new(input.as_bytes().to_vec())),
        stdout: out.0,
        stderr: err.0,
        interrupt: None,
        screen: None,
    };
    let running = run(vec!["sh".into(), "-c".into(), text.into()], process);
    let all = async { futures::join!(running, out.1.read_all(), err.1.read_all()) };
    let (status, out, err) =
        tokio::time::timeout(std::time::Duration::from_secs(20), all).await.expect("no command may hang");
    (String::from_utf8(out.unwrap()).unwrap(), String::from_utf8(err.unwrap()).unwrap(), status)
}

#[tokio::test]
async fn commands() {
    let table = [
        // Words and quoting.
        ("echo a  b", "a b\n"),
        ("echo 'a  b' \"c  $WHO\" d\\ e", "a  b c  me d e\n"),
        ("echo $NOBODY-${NOBODY:-x}-${WHO:+y}-${#WHO}", "-x-y-2\n"),
        ("f=a/b.c; echo ${f#*/} ${f%.c} ${f##*/} ${f%%/*}", "b.c a/b b.c a\n"),
        (
            "x='1 2  3'; for i in $x; do echo -n \"<$i>\"; done; for i in \"$x\"; do echo \"<$i>\"; done",
            "<1><2><3><1 2  3>\n",
        ),
        ("echo \"$(echo a; echo b)\" `echo c`", "a\nb c\n"),
        ("echo $((1 + 2 * 3)) $((10 / 3))", "7 3\n"),
        ("set -- a 'b c'; for x in \"$@\"; do echo \"[$x]\"; done; echo $# $1", "[a]\n[b c]\n2 a\n"),
        // Lists, conditions, loops.
        ("true && echo yes || echo no; false && echo yes || echo no", "yes\nno\n"),
        ("if [ $WHO = me ]; then echo 1; elif true; then echo 2; else echo 3; fi", "1\n"),
        ("if false; then echo 1; else echo 3; fi", "3\n"),
        ("i=0; while [ $i -lt 3 ]; do echo $i; i=$((i+1)); done", "0\n1\n2\n"),
        ("i=0; until [ $i -ge 2 ]; do i=$((i+1)); done; echo $i", "2\n"),
        (
            "for i in $(seq 5); do if [ $i = 2 ]; then continue; fi; if [ $i = 4 ]; then break; fi; echo $i; done",
            "1\n3\n",
        ),
        ("for i in 1 2 3; do echo $i; done | sort -r | head -n 1", "3\n"),
        ("case $WHO in a|b) echo no;; m*) echo yes;; esac", "yes\n"),
        ("f() { echo \"f $1\"; return 3; }; f x; echo $?", "f x\n3\n"),
        ("! true; echo $?; ! false; echo $?", "1\n0\n"),
        ("(x=1; echo $x); echo ${x:-unset}", "1\nunset\n"),
        ("{ echo a; echo b; } | wc -l", "2\n"),
        ("set -e; false || true; echo here; false; echo not here", "here\n"),
        // Pipes and redirections.
        ("echo hello > /tmp/x; echo more >> /tmp/x; cat /tmp/x; cat < /tmp/x | wc -l", "hello\nmore\n2\n"),
        ("cat /nowhere 2>/dev/null || echo failed", "failed\n"),
        ("{ echo out; echo err >&2; } 2>&1 | sort", "err\nout\n"),
        ("cat <<EOF\na $WHO\nEOF", "a me\n"),
        ("cat <<'EOF'\na $WHO\nEOF", "a $WHO\n"),
        ("printf 'a b\\nc d\\n' | while read x y; do echo \"$y $x\"; done", "b a\nd c\n"),
        ("while true; do echo y; done | head -n 2", "y\ny\n"),
        ("seq 1000000 | head -n 1", "1\n"),
        // Tools.
        ("printf '%s=%d|%5s|%-3s|%03d\\n' a 7 x y 5", "a=7|    x|y  |005\n"),
        ("echo -e 'b\\na\\nb' | sort | uniq -c", "      1 a\n      2 b\n"),
        ("printf 'v1\\nv2\\nv1\\n' | sort | uniq | wc -l", "2\n"),
        ("seq 3 -1 1 | tail -n 2", "2\n1\n"),
        ("hostname; printenv WHO; env | grep -c WHO", "pod-1\nme\n1\n"),
        ("echo a:b:c | cut -d: -f2; echo abc | tr a-c A-C", "b\nABC\n"),
        ("echo 'Hello version: v1, x' | grep -o 'v[12]'", "v1\n"),
        ("echo x | grep -q y; echo $?", "1\n"),
        ("nslookup localhost | grep -c Address", "1\n"),
        ("date +%s | grep -qE '^[0-9]+$' && echo time", "time\n"),
        ("[ -z \"\" ] && [ a != b ] && [ 2 -gt 1 ] && test -d /tmp && echo all", "all\n"),
        ("ls /; command -v curl; type nothing-like-this; echo $?", "tmp\n/bin/curl\n127\n"),
        ("sleep 0.01 & wait; echo done", "done\n"),
        ("cd /tmp && pwd; cd ../../.. ; pwd", "/tmp\n/\n"),
        ("X=1 env | grep ^X=; export Y=2; env | grep ^Y=", "X=1\nY=2\n"),
        ("eval 'echo $WHO'; sh -c 'echo $0 $1' a b", "me\na b\n"),
    ];
    for (text, expected) in table {
        let (out, err, _) = shell(text).await;
        assert_eq!(out, expected, "`{text}` wrote to stderr: {err}");
    }
}

#[tokio::test]
async fn failures() {
    let table = [
        ("nothing-like-this", 127, "sh: nothing-like-this: not found\n"),
        ("exit 7", 7, ""),
        ("false", 1, ""),
        ("cat /nowhere", 1, "cat: can't open '/nowhere': No such file or directory\n"),
        ("cat < /nowhere", 1, "sh: can't open /nowhere: No such file or directory\n"),
        ("echo ${X:?is needed}; echo no", 2, "sh: ${X}: is needed\n"),
        ("echo $((1/0))", 2, "sh: arithmetic: divide by zero\n"),
        ("f() { f; }; f", 2, "sh: f: maximum function nesting exceeded\n"),
        ("cat ../../../../etc/passwd", 1, "cat: can't open '../../../../etc/passwd': No such file or directory\n"),
    ];
    for (text, status, message) in table {
        let (_, err, code) = shell(text).await;
        assert_eq!((code, err.as_str()), (status, message), "`{text}`");
    }
    let (_, err, code) = shell("if true").await;
    assert!(code == 2 && err.starts_with("sh: syntax error: "), "{err}");
}

#[tokio::test]
async fn a_script_on_standard_input() {
    let (out, _, code) = with_input("sh", "x=1\nfor i in 1 2; do\n  echo $i$x\ndone\nexit 3\n").await;
    assert_eq!((out.as_str(), code), ("11\n21\n", 3));
}

/// A web server with a few habits.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte).await, Ok(1)) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let path = head.split(' ').nth(1).unwrap_or("").to_owned();
                let answer = |status: &str, extra: &str, body: &str| {
                    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{extra}\r\n{body}", body.len())
                };
                let text = match path.as_str() {
                    "/hello" => answer("200 OK", "content-type: text/plain\r\n", "Hello\n"),
                    "/echo" => {
                        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap_or("0");
                        let mut body = vec![0; length.parse().unwrap()];
                        stream.read_exact(&mut body).await.unwrap();
                        let head = head.lines().filter(|l| !l.starts_with("host")).collect::<Vec<_>>().join("|");
                        answer("200 OK", "", &format!("{head}{}\n", String::from_utf8_lossy(&body)))
                    }
                    "/moved" => answer("302 Found", "location: /hello\r\n", ""),
                    "/bad" => answer("503 Service Unavailable", "", "broken\n"),
                    "/empty" => return,
                    "/slow" => {
                        tokio::time::sleep(std::time::Duration::from_secs(30)).await;
                        return;
                    }
                    _ => answer("404 Not Found", "", "nothing\n"),
                };
                let _ = stream.write_all(text.as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn curl_speaks_like_curl() {
    let at = server().await;
    let closed = {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        gone.local_addr().unwrap()
    };
    let table = [
        ("curl -sS {}/hello", "Hello\n", "", 0),
        (
            "curl -s -o /dev/null -w '%{http_code} %{size_download} %{content_type}\\n' http://{}/hello",
            "200 6 text/plain\n",
            "",
            0,
        ),
        ("curl -sI {}/hello | head -n 1 | tr -d '\\r'", "HTTP/1.1 200 OK\n", "", 0),
        ("curl -s {}/moved -L -w '%{num_redirects}\\n'", "Hello\n1\n", "", 0),
        ("curl -sf {}/bad; echo $?", "22\n", "", 0),
        ("curl -fsS {}/bad", "", "curl: (22) The requested URL returned error: 503\n", 22),
        ("curl -s {}/bad", "broken\n", "", 0),
        (
            "curl -s {}/echo -H 'X-A: b' -d 'q=1' -A me",
            "POST /echo HTTP/1.1|user-agent: me|accept: */*|content-length: 3|content-type: application/x-www-form-urlencoded|x-a: b|q=1\n",
            "",
            0,
        ),
        ("curl -sX PUT {}/echo -H accept: -H user-agent:", "PUT /echo HTTP/1.1|\n", "", 0),
        ("curl -sS {}/empty", "", "curl: (52) Empty reply from server\n", 52),
        ("curl -s http://[closed]/; echo $?", "7\n", "", 0),
        ("curl -sS http://no.such.host.invalid/", "", "curl: (6) Could not resolve host: no.such.host.invalid\n", 6),
        ("curl -s --resolve web.test:{port}:127.0.0.1 http://web.test:{port}/hello", "Hello\n", "", 0),
        ("curl -s -m 0.05 {}/slow; echo $?", "28\n", "", 0),
        ("curl -s --retry 2 --retry-delay 0 {}/bad -w '%{http_code}' -o /dev/null", "503", "", 0),
        ("curl", "", "curl: (2) no URL specified\ncurl: try 'curl --help' for more information\n", 2),
        (
            "curl --frobnicate x",
            "",
            "curl: option --frobnicate: is unknown\ncurl: try 'curl --help' for more information\n",
            2,
        ),
        ("curl -sS ftp://x/", "", "curl: (1) Protocol \"ftp\" not supported\n", 1),
        (
            "curl -sS http://x:y/",
            "",
            "curl: (3) URL rejected: Port number was not a decimal number between 0 and 65535\n",
            3,
        ),
        ("for i in $(seq 3); do curl -s {}/hello; done | sort | uniq -c", "      3 Hello\n", "", 0),
    ];
    for (text, out, err, status) in table {
        let text = text.replace("[closed]", &closed.to_string()).replace("{port}", &at.port().to_string());
        let text = text.replace("{}", &at.to_string());
        let result = shell(&text).await;
        assert_eq!((result.0.as_str(), result.1.as_str(), result.2), (out, err, status), "`{text}`");
    }
    let (_, err, _) = shell(&format!("curl -vs {at}/hello")).await;
    assert!(err.contains("> GET /hello HTTP/1.1\n") && err.contains("< HTTP/1.1 200 OK"), "{err}");
}

#[tokio::test]
async fn a_terminal_edits_echoes_and_interrupts() {
    let (mut keys, far) = tokio::io::duplex(1024);
    let (screen, mut near) = tokio::io::duplex(64 * 1024);
    let (terminal, work) = open_terminal(far, screen, Screen::default());
    let process = Process {
        net: Arc::new(HostNet::default()),
        root: std::env::temp_dir(),
        directory: "/".into(),
        env: BTreeMap::new(),
        hostname: "pod-1".to_owned(),
        stdin: terminal.stdin,
        stdout: terminal.stdout.clone(),
        stderr: terminal.stdout,
        interrupt: Some(terminal.interrupt),
        screen: Some(terminal.screen),
    };
    let shell = async {
        tokio::select! {
            code = run(vec!["sh".into()], process) => code,
            () = work => -1,
        }
    };
    let typing = async {
        keys.write_all(b"echo hex\x7fy\r").await.unwrap();
        keys.write_all(b"sleep 1000\r").await.unwrap();
        // Once the shell has begun to sleep.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        keys.write_all(b"\x03echo $?\rbad(\rexit 4\r").await.unwrap();
    };
    let both = async { futures::join!(shell, typing).0 };
    let code = tokio::time::timeout(std::time::Duration::from_secs(20), both).await.expect("no terminal may hang");
    let mut shown = String::new();
    near.read_to_string(&mut shown).await.unwrap();
    assert_eq!(code, 4, "{shown}");
    assert!(shown.contains("echo hex\x08 \x08y\r\n") && shown.contains("hey\r\n"), "{shown:?}");
    assert!(shown.contains("^C\r\n") && shown.contains("130\r\n"), "{shown:?}");
}

#[tokio::test]
async fn archives_are_made_and_taken_apart() {
    let long = "n".repeat(150);
    let text = format!(
        "cd /tmp; echo one > x; echo two > {long}; tar cf - x {long} > t.tar; \
         tar tf t.tar | wc -l; tar tf - < t.tar; tar -xmf - -C /out < t.tar && cat /out/x /out/{long}; \
         tail -c +3 x; tar cf - none | wc -c; tar xzf t.tar; echo $?"
    );
    let (out, err, _) = shell(&text).await;
    assert_eq!(out, format!("2\nx\n{long}\none\ntwo\ne\n0\n2\n"), "{err}");
    assert!(err.contains("none: Cannot stat") && err.contains("compression is not supported"), "{err}");
}

#[tokio::test]
async fn archives_do_not_lead_out_of_the_root() {
    // Two names and a link that Python's tarfile would write: `../up`, `link -> /etc`, `safe -> x`.
    let header = |name: &str, flag: u8, link: &str| {
        let mut block = [0_u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(b"00000000000");
        block[148..156].fill(b' ');
        block[156] = flag;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..263].copy_from_slice(b"ustar\0");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    };
    let blocks = [
        header("../up", b'0', ""),
        header("link", b'2', "/etc"),
        header("up", b'2', "../.."),
        header("safe", b'2', "x"),
        header("/abs", b'0', ""),
        header("pipe", b'6', ""),
    ];
    let root = tempfile::tempdir().unwrap();
    let (out, err) = (pipe(), pipe());
    let process = Process {
        net: Arc::new(HostNet::default()),
        root: root.path().to_owned(),
        directory: "/".into(),
        env: BTreeMap::new(),
        hostname: "pod-1".to_owned(),
        stdin: Source::new(std::io::Cursor::new(blocks.concat())),
        stdout: out.0,
        stderr: err.0,
        interrupt: None,
        screen: None,
    };
    let running = run(vec!["tar".into(), "xf".into(), "-".into()], process);
    let (status, complaint) = futures::join!(running, err.1.read_all());
    let complaint = String::from_utf8(complaint.unwrap()).unwrap();
    assert_eq!((status, complaint.lines().count()), (2, 4), "{complaint}");
    let mut made: Vec<_> = std::fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    made.sort();
    assert_eq!(made, ["abs", "safe"]);
}
