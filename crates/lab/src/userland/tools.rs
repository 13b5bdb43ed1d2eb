//! The small programs.

use std::future::Future;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::shell::reason;
use super::{BROKEN_PIPE, Process};

type Tool = fn(Vec<String>, Process) -> BoxFuture<'static, i32>;

/// The tool called `name`.
pub(super) fn find(name: &str) -> Option<Tool> {
    Some(match name {
        "true" => |_, _| boxed(async { 0 }),
        "false" => |_, _| boxed(async { 1 }),
        "echo" => |a, p| boxed(echo(a, p)),
        "printf" => |a, p| boxed(printf(a, p)),
        "cat" => |a, p| boxed(cat(a, p)),
        "env" => |a, p| boxed(env(a, p)),
        "printenv" => |a, p| boxed(printenv(a, p)),
        "sleep" => |a, p| boxed(sleep(a, p)),
        "date" => |a, p| boxed(date(a, p)),
        "hostname" => |_, p| boxed(async move { say(&p, &format!("{}\n", p.hostname)).await }),
        "whoami" => |_, p| boxed(async move { say(&p, "root\n").await }),
        "grep" => |a, p| boxed(grep(a, p)),
        "head" => |a, p| boxed(head(a, p)),
        "tail" => |a, p| boxed(tail(a, p)),
        "wc" => |a, p| boxed(wc(a, p)),
        "sort" => |a, p| boxed(sort(a, p)),
        "uniq" => |a, p| boxed(uniq(a, p)),
        "cut" => |a, p| boxed(cut(a, p)),
        "tr" => |a, p| boxed(tr(a, p)),
        "tee" => |a, p| boxed(tee(a, p)),
        "ls" => |a, p| boxed(ls(a, p)),
        "seq" => |a, p| boxed(seq(a, p)),
        "tar" => |a, p| boxed(super::tar::main(a, p)),
        "stty" => |a, p| boxed(stty(a, p)),
        "nslookup" => |a, p| boxed(nslookup(a, p)),
        "test" | "[" => |a, p| boxed(test(a, p)),
        _ => return None,
    })
}

fn boxed(future: impl Future<Output = i32> + Send + 'static) -> BoxFuture<'static, i32> {
    future.boxed()
}

async fn say(process: &Process, text: &str) -> i32 {
    match process.stdout.write(text.as_bytes()).await {
        Ok(()) => 0,
        Err(_) => BROKEN_PIPE,
    }
}

async fn echo(arguments: Vec<String>, process: Process) -> i32 {
    let (mut newline, mut escapes) = (true, false);
    let mut rest = &arguments[..];
    while let Some((first, others)) = rest.split_first() {
        match first.as_str() {
            "-n" => newline = false,
            "-e" => escapes = true,
            "-ne" | "-en" => (newline, escapes) = (false, true),
            "-E" => escapes = false,
            _ => break,
        }
        rest = others;
    }
    let mut text = rest.join(" ");
    if escapes {
        let (expanded, stopped) = unescape(&text, true);
        text = expanded;
        newline &= !stopped;
    }
    if newline {
        text.push('\n');
    }
    say(&process, &text).await
}

/// Backslash sequences; whether `\c` cut it short.
pub(super) fn unescape(text: &str, cut: bool) -> (String, bool) {
    let mut out = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('a') => out.push('\x07'),
            Some('e') => out.push('\x1b'),
            Some('\\') => out.push('\\'),
            Some('c') if cut => return (out, true),
            Some('0') => {
                let mut value = 0;
                for _ in 0..3 {
                    let Some(digit) = rest.peek().and_then(|c| c.to_digit(8)) else { break };
                    value = value * 8 + digit;
                    rest.next();
                }
                out.extend(char::from_u32(value));
            }
            Some('x') => {
                let mut value = 0;
                for _ in 0..2 {
                    let Some(digit) = rest.peek().and_then(|c| c.to_digit(16)) else { break };
                    value = value * 16 + digit;
                    rest.next();
                }
                out.extend(char::from_u32(value));
            }
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    (out, false)
}

async fn printf(arguments: Vec<String>, process: Process) -> i32 {
    let Some((format, mut values)) = arguments.split_first() else {
        process.complain("printf: usage: printf format [arguments]").await;
        return 2;
    };
    let format = unescape(format, false).0;
    let mut out = String::new();
    loop {
        let before = values.len();
        out += &formatted(&format, &mut values);
        if values.is_empty() || values.len() == before {
            break;
        }
    }
    say(&process, &out).await
}

fn formatted(format: &str, values: &mut &[String]) -> String {
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    let mut next = || match values.split_first() {
        Some((first, rest)) => {
            *values = rest;
            first.clone()
        }
        None => String::new(),
    };
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(c) = chars.next_if(|c| "-0+ .123456789".contains(*c)) {
            flags.push(c);
        }
        let text = match chars.next() {
            Some('%') => {
                out.push('%');
                continue;
            }
            Some('s') => next(),
            Some('b') => unescape(&next(), false).0,
            Some('c') => next().chars().take(1).collect(),
            Some('d' | 'i' | 'u') => next().trim().parse::<i64>().unwrap_or(0).to_string(),
            Some('x') => format!("{:x}", next().trim().parse::<i64>().unwrap_or(0)),
            Some('f') => {
                let digits = flags.split_once('.').and_then(|(_, d)| d.parse().ok()).unwrap_or(6);
                format!("{:.digits$}", next().trim().parse::<f64>().unwrap_or(0.0))
            }
            Some(other) => format!("%{flags}{other}"),
            None => "%".to_owned(),
        };
        let width = flags.split('.').next().unwrap_or("").trim_start_matches(['-', '+', ' ']);
        let zeros = width.starts_with('0');
        let width = width.parse().unwrap_or(0_usize).min(1000);
        out += &match (flags.starts_with('-'), zeros) {
            (true, _) => format!("{text:<width$}"),
            (false, true) => format!("{text:0>width$}"),
            (false, false) => format!("{text:>width$}"),
        };
    }
    out
}

/// The named inputs, `-` and no name meaning standard input.
async fn inputs(tool: &str, names: &[String], process: &Process) -> Result<Vec<u8>, i32> {
    let mut all = Vec::new();
    let stdin = ["-".to_owned()];
    for name in if names.is_empty() { &stdin[..] } else { names } {
        let read = if name == "-" || name == "/dev/stdin" {
            process.stdin.read_all().await
        } else if name == "/dev/null" {
            Ok(Vec::new())
        } else {
            tokio::fs::read(process.place(name)).await
        };
        match read {
            Ok(bytes) => all.extend(bytes),
            Err(error) => {
                process.complain(format!("{tool}: can't open '{name}': {}", reason(&error))).await;
                return Err(1);
            }
        }
    }
    Ok(all)
}

async fn text(tool: &str, names: &[String], process: &Process) -> Result<String, i32> {
    Ok(String::from_utf8_lossy(&inputs(tool, names, process).await?).into_owned())
}

async fn cat(arguments: Vec<String>, process: Process) -> i32 {
    let names: Vec<_> = arguments.into_iter().filter(|a| a == "-" || !a.starts_with('-')).collect();
    if !names.is_empty() {
        return match inputs("cat", &names, &process).await {
            Ok(all) => match process.stdout.write(&all).await {
                Ok(()) => 0,
                Err(_) => BROKEN_PIPE,
            },
            Err(code) => code,
        };
    }
    // Standard input may be somebody typing: pass on what there is.
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match process.stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => return 0,
            Ok(n) => {
                if process.stdout.write(&buffer[..n]).await.is_err() {
                    return BROKEN_PIPE;
                }
            }
        }
    }
}

async fn env(arguments: Vec<String>, mut process: Process) -> i32 {
    let mut rest = arguments.into_iter().peekable();
    while let Some(word) = rest.next_if(|w| w.contains('=') || w == "-i" || w == "-") {
        match word.split_once('=') {
            Some((name, value)) => {
                process.env.insert(name.to_owned(), value.to_owned());
            }
            None => process.env.clear(),
        }
    }
    let command: Vec<String> = rest.collect();
    if !command.is_empty() {
        return super::run(command, process).await;
    }
    let lines: String = process.env.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    say(&process, &lines).await
}

async fn printenv(arguments: Vec<String>, process: Process) -> i32 {
    if arguments.is_empty() {
        return env(arguments, process).await;
    }
    let mut status = 0;
    for name in &arguments {
        match process.env.get(name) {
            Some(value) => status |= say(&process, &format!("{value}\n")).await,
            None => status = 1,
        }
    }
    status
}

async fn sleep(arguments: Vec<String>, process: Process) -> i32 {
    let mut total = Duration::ZERO;
    for argument in &arguments {
        let unit = argument.chars().last().filter(|c| c.is_ascii_alphabetic());
        let number = argument.strip_suffix(|c: char| c.is_ascii_alphabetic()).unwrap_or(argument);
        let factor = match unit {
            Some('m') => 60.0,
            Some('h') => 3600.0,
            Some('d') => 86400.0,
            _ => 1.0,
        };
        match number.parse::<f64>() {
            _ if matches!(argument.as_str(), "infinity" | "inf") => std::future::pending().await,
            Ok(seconds) if seconds >= 0.0 => {
                total += Duration::try_from_secs_f64(seconds * factor).unwrap_or(Duration::MAX / 4);
            }
            _ => {
                process.complain(format!("sleep: invalid number '{argument}'")).await;
                return 1;
            }
        }
    }
    if arguments.is_empty() {
        process.complain("sleep: missing operand").await;
        return 1;
    }
    tokio::time::sleep(total).await;
    0
}

async fn date(arguments: Vec<String>, process: Process) -> i32 {
    let format = arguments.iter().find_map(|a| a.strip_prefix('+')).unwrap_or("%a %b %e %H:%M:%S UTC %Y");
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    match jiff::fmt::strtime::format(format, &now) {
        Ok(text) => say(&process, &format!("{text}\n")).await,
        Err(error) => {
            process.complain(format!("date: {error}")).await;
            1
        }
    }
}

/// `-nK`, `-n K`, `-K`: a count, and the other arguments.
fn count(arguments: Vec<String>, default: usize) -> (usize, Vec<String>) {
    let mut count = default;
    let mut names = Vec::new();
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        match argument.strip_prefix('-') {
            Some("n") => count = rest.next().and_then(|n| n.parse().ok()).unwrap_or(default),
            Some(flag) if !flag.is_empty() => count = flag.trim_start_matches('n').parse().unwrap_or(default),
            _ => names.push(argument),
        }
    }
    (count, names)
}

/// Only what terminals are asked for: `stty size`.
async fn stty(arguments: Vec<String>, process: Process) -> i32 {
    let Some(screen) = &process.screen else {
        process.complain("stty: standard input: not a tty").await;
        return 1;
    };
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["size"] => {
            let (columns, rows) = screen.size();
            say(&process, &format!("{rows} {columns}\n")).await
        }
        _ => {
            process.complain("stty: only `stty size` is known here").await;
            1
        }
    }
}

async fn head(arguments: Vec<String>, process: Process) -> i32 {
    let (count, names) = count(arguments, 10);
    if names.is_empty() {
        for _ in 0..count {
            match process.stdin.read_line().await {
                Ok(Some(line)) => {
                    if say(&process, &format!("{line}\n")).await != 0 {
                        return BROKEN_PIPE;
                    }
                }
                _ => break,
            }
        }
        return 0;
    }
    match text("head", &names, &process).await {
        Ok(text) => say(&process, &lines(text.lines().take(count))).await,
        Err(code) => code,
    }
}

/// The bytes from number `first` on, counted from 1: what `kubectl cp` goes on with after a broken connection.
async fn tail_bytes(first: u64, names: &[String], process: &Process) -> i32 {
    let from = match names {
        [] => process.stdin.clone(),
        [name, ..] => match tokio::fs::File::open(process.place(name)).await {
            Ok(file) => super::Source::new(file),
            Err(error) => {
                process.complain(format!("tail: can't open '{name}': {}", reason(&error))).await;
                return 1;
            }
        },
    };
    let mut skip = first.saturating_sub(1);
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return 0,
            Ok(count) => {
                let skipped = skip.min(count as u64);
                skip -= skipped;
                let rest = &buffer[usize::try_from(skipped).unwrap_or(count)..count];
                if !rest.is_empty() && process.stdout.write(rest).await.is_err() {
                    return BROKEN_PIPE;
                }
            }
        }
    }
}

async fn tail(arguments: Vec<String>, process: Process) -> i32 {
    let bytes = arguments.first().and_then(|first| first.strip_prefix("-c"));
    let (bytes, names) = match (bytes, arguments.get(1)) {
        (Some(""), Some(next)) => (Some(next.as_str()), &arguments[2..]),
        (bytes, _) => (bytes, arguments.get(1..).unwrap_or_default()),
    };
    if let Some(first) = bytes.and_then(|bytes| bytes.strip_prefix('+')?.parse().ok()) {
        return tail_bytes(first, names, &process).await;
    }
    let (count, names) = count(arguments, 10);
    match text("tail", &names, &process).await {
        Ok(text) => {
            let skip = text.lines().count().saturating_sub(count);
            say(&process, &lines(text.lines().skip(skip))).await
        }
        Err(code) => code,
    }
}

fn lines<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Single-letter flags, bundled or not, and the rest.
fn flags(arguments: Vec<String>) -> (String, Vec<String>) {
    let mut letters = String::new();
    let mut names = Vec::new();
    let mut open = true;
    for argument in arguments {
        match argument.strip_prefix('-') {
            Some("-") => open = false,
            Some(flag) if open && !flag.is_empty() => letters += flag,
            _ => names.push(argument),
        }
    }
    (letters, names)
}

async fn grep(arguments: Vec<String>, process: Process) -> i32 {
    let (letters, mut names) = flags(arguments);
    if names.is_empty() {
        process.complain("grep: usage: grep [-cEFinoqvwx] pattern [file…]").await;
        return 2;
    }
    let pattern = names.remove(0);
    let has = |flag| letters.contains(flag);
    let text = match text("grep", &names, &process).await {
        Ok(text) => text,
        Err(_) => return 2,
    };
    let basic = !has('E') && !has('P');
    let pattern = match Pattern::new(&pattern, has('F'), basic, has('i')) {
        Ok(pattern) => pattern,
        Err(problem) => {
            process.complain(format!("grep: {problem}")).await;
            return 2;
        }
    };
    let mut found = 0;
    let mut out = String::new();
    for (number, line) in text.lines().enumerate() {
        let mut spans = pattern.find(line);
        if has('x') {
            spans.retain(|(start, end)| *start == 0 && *end == line.len());
        }
        if has('w') {
            let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
            spans.retain(|(s, e)| edge(line[..*s].chars().last()) && edge(line[*e..].chars().next()));
        }
        if spans.is_empty() == has('v') {
            found += 1;
            if has('q') {
                return 0;
            }
            let prefix = if has('n') { format!("{}:", number + 1) } else { String::new() };
            if has('o') && !has('v') {
                for (start, end) in spans {
                    out += &format!("{prefix}{}\n", &line[start..end]);
                }
            } else {
                out += &format!("{prefix}{line}\n");
            }
        }
    }
    if has('c') {
        out = format!("{found}\n");
    }
    if !has('q') && say(&process, &out).await != 0 {
        return BROKEN_PIPE;
    }
    i32::from(found == 0)
}

/// A regular expression, small: `. * + ? ^ $ [ ] ( | )` and `\`; backtracking with a step limit.
struct Pattern {
    branches: Vec<Vec<Node>>,
    fold: bool,
}

#[derive(Clone, Debug)]
enum Node {
    Char(char),
    Any,
    Set(Vec<(char, char)>, bool),
    Start,
    End,
    Group(Vec<Vec<Node>>),
    Repeat(Box<Node>, usize, usize),
}

impl Pattern {
    fn new(text: &str, fixed: bool, basic: bool, fold: bool) -> Result<Self, String> {
        let text = if fold { text.to_lowercase() } else { text.to_owned() };
        if fixed {
            return Ok(Self { branches: vec![text.chars().map(Node::Char).collect()], fold });
        }
        // A basic expression has its operators behind backslashes: turn one into the other.
        let chars: Vec<char> = if basic {
            let mut out = Vec::new();
            let mut rest = text.chars();
            while let Some(c) = rest.next() {
                match c {
                    '\\' => match rest.next() {
                        Some(c @ ('|' | '(' | ')' | '+' | '?' | '{' | '}')) => out.push(c),
                        Some(c) => out.extend(['\\', c]),
                        None => out.push('\\'),
                    },
                    '|' | '(' | ')' | '+' | '?' | '{' | '}' => out.extend(['\\', c]),
                    c => out.push(c),
                }
            }
            out
        } else {
            text.chars().collect()
        };
        let mut at = 0;
        let branches = parse(&chars, &mut at, 0)?;
        if at < chars.len() { Err("unmatched )".to_owned()) } else { Ok(Self { branches, fold }) }
    }

    /// Where it is found in `line`, from left to right.
    fn find(&self, line: &str) -> Vec<(usize, usize)> {
        let folded = if self.fold { line.to_lowercase() } else { line.to_owned() };
        if folded.len() != line.len() {
            return Vec::new();
        }
        let chars: Vec<(usize, char)> = folded.char_indices().collect();
        let position = |i: usize| chars.get(i).map_or(folded.len(), |(at, _)| *at);
        let mut spans = Vec::new();
        let mut start = 0;
        let mut steps = 200_000;
        while start <= chars.len() {
            let mut best = None;
            for branch in &self.branches {
                ends(branch, &chars, start, &mut steps, &mut |end| {
                    if best.is_none_or(|b| end > b) {
                        best = Some(end);
                    }
                    false
                });
            }
            match best {
                Some(end) => {
                    spans.push((position(start), position(end)));
                    start = end.max(start + 1);
                }
                None => start += 1,
            }
        }
        spans
    }
}

fn parse(chars: &[char], at: &mut usize, depth: u32) -> Result<Vec<Vec<Node>>, String> {
    if depth > 20 {
        return Err("groups nest too deep".to_owned());
    }
    let mut branches = vec![Vec::new()];
    while let Some(&c) = chars.get(*at) {
        *at += 1;
        let branch = branches.last_mut().ok_or("no branch")?;
        let node = match c {
            '.' => Node::Any,
            '^' => Node::Start,
            '$' => Node::End,
            '|' => {
                branches.push(Vec::new());
                continue;
            }
            ')' if depth > 0 => {
                *at -= 1;
                return Ok(branches);
            }
            '(' => {
                let inner = parse(chars, at, depth + 1)?;
                if chars.get(*at) != Some(&')') {
                    return Err("unmatched (".to_owned());
                }
                *at += 1;
                Node::Group(inner)
            }
            '[' => set(chars, at)?,
            '*' | '+' | '?' if !branch.is_empty() => {
                let last = branch.pop().ok_or("nothing to repeat")?;
                let (least, most) = match c {
                    '*' => (0, usize::MAX),
                    '+' => (1, usize::MAX),
                    _ => (0, 1),
                };
                Node::Repeat(Box::new(last), least, most)
            }
            '{' if !branch.is_empty() => {
                let close = chars[*at..].iter().position(|c| *c == '}').ok_or("unmatched {")?;
                let text: String = chars[*at..*at + close].iter().collect();
                *at += close + 1;
                let (least, most) = text.split_once(',').unwrap_or((&text, &text));
                let least = least.parse().map_err(|_| "bad repeat")?;
                let most = if most.is_empty() { usize::MAX } else { most.parse().map_err(|_| "bad repeat")? };
                let last = branch.pop().ok_or("nothing to repeat")?;
                Node::Repeat(Box::new(last), least, most)
            }
            '\\' => {
                let escaped = chars.get(*at).copied().ok_or("trailing backslash")?;
                *at += 1;
                match escaped {
                    'd' => Node::Set(vec![('0', '9')], false),
                    'w' => Node::Set(vec![('a', 'z'), ('A', 'Z'), ('0', '9'), ('_', '_')], false),
                    's' => Node::Set(vec![(' ', ' '), ('\t', '\t')], false),
                    other => Node::Char(other),
                }
            }
            other => Node::Char(other),
        };
        branches.last_mut().ok_or("no branch")?.push(node);
    }
    Ok(branches)
}

fn set(chars: &[char], at: &mut usize) -> Result<Node, String> {
    let negated = chars.get(*at) == Some(&'^');
    *at += usize::from(negated);
    let mut ranges = Vec::new();
    let first = *at;
    loop {
        let c = *chars.get(*at).ok_or("unmatched [")?;
        *at += 1;
        if c == ']' && *at > first + 1 {
            return Ok(Node::Set(ranges, negated));
        }
        if c == '[' && chars.get(*at) == Some(&':') {
            let close = chars[*at..].iter().position(|c| *c == ']').ok_or("unmatched [:")?;
            let class: String = chars[*at..*at + close].iter().collect();
            *at += close + 1;
            match class.as_str() {
                ":digit:" => ranges.push(('0', '9')),
                ":alpha:" => ranges.extend([('a', 'z'), ('A', 'Z')]),
                ":alnum:" => ranges.extend([('a', 'z'), ('A', 'Z'), ('0', '9')]),
                ":space:" => ranges.extend([(' ', ' '), ('\t', '\r')]),
                ":upper:" => ranges.push(('A', 'Z')),
                ":lower:" => ranges.push(('a', 'z')),
                other => return Err(format!("unknown class [{other}]")),
            }
        } else if chars.get(*at) == Some(&'-') && chars.get(*at + 1).is_some_and(|c| *c != ']') {
            ranges.push((c, chars[*at + 1]));
            *at += 2;
        } else {
            ranges.push((c, c));
        }
    }
}

/// Calls `found` with every end a match of `nodes` from `at` can have, until it says `true` or the steps are used up.
fn ends(
    nodes: &[Node],
    text: &[(usize, char)],
    at: usize,
    steps: &mut u32,
    found: &mut dyn FnMut(usize) -> bool,
) -> bool {
    if *steps == 0 {
        return true;
    }
    *steps -= 1;
    let Some((node, rest)) = nodes.split_first() else { return found(at) };
    let here = text.get(at).map(|(_, c)| *c);
    match node {
        Node::Start => at == 0 && ends(rest, text, at, steps, found),
        Node::End => at == text.len() && ends(rest, text, at, steps, found),
        Node::Group(branches) => branches.iter().any(|branch| {
            let mut after = Vec::new();
            ends(branch, text, at, steps, &mut |end| {
                after.push(end);
                false
            });
            after.sort_unstable();
            after.dedup();
            after.into_iter().rev().any(|end| ends(rest, text, end, steps, found))
        }),
        Node::Repeat(inner, least, most) => {
            // All places reachable by so many repeats, breadth first: no place twice, so no explosion.
            let mut seen = std::collections::BTreeSet::new();
            let mut frontier = vec![at];
            let mut reached = Vec::new();
            let mut round = 0;
            while !frontier.is_empty() && round <= *most {
                if round >= *least {
                    reached.extend(frontier.iter().copied());
                }
                let mut next = Vec::new();
                for place in frontier {
                    ends(std::slice::from_ref(inner), text, place, steps, &mut |end| {
                        if end > place && (round + 1 < *least || seen.insert(end)) {
                            next.push(end);
                        }
                        false
                    });
                }
                frontier = next;
                round += 1;
            }
            reached.sort_unstable();
            reached.dedup();
            reached.into_iter().rev().any(|end| ends(rest, text, end, steps, found))
        }
        Node::Char(c) => here == Some(*c) && ends(rest, text, at + 1, steps, found),
        Node::Any => here.is_some() && ends(rest, text, at + 1, steps, found),
        Node::Set(ranges, negated) => {
            let hit = here.is_some_and(|c| ranges.iter().any(|(a, b)| *a <= c && c <= *b) != *negated);
            hit && ends(rest, text, at + 1, steps, found)
        }
    }
}

async fn wc(arguments: Vec<String>, process: Process) -> i32 {
    let (letters, names) = flags(arguments);
    let bytes = match inputs("wc", &names, &process).await {
        Ok(bytes) => bytes,
        Err(code) => return code,
    };
    let all = letters.is_empty();
    let mut numbers = Vec::new();
    if all || letters.contains('l') {
        numbers.push(bytes.iter().filter(|b| **b == b'\n').count());
    }
    if all || letters.contains('w') {
        numbers.push(String::from_utf8_lossy(&bytes).split_whitespace().count());
    }
    if all || letters.contains(['c', 'm']) {
        numbers.push(bytes.len());
    }
    let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    let names: String = names.iter().map(|n| format!(" {n}")).collect();
    say(&process, &format!("{}{names}\n", numbers.join(" "))).await
}

async fn sort(arguments: Vec<String>, process: Process) -> i32 {
    let (letters, names) = flags(arguments);
    let text = match text("sort", &names, &process).await {
        Ok(text) => text,
        Err(code) => return code,
    };
    let mut sorted: Vec<&str> = text.lines().collect();
    if letters.contains('n') {
        let number = |line: &str| {
            let line = line.trim_start();
            let end = line.find(|c: char| !c.is_ascii_digit() && c != '-' && c != '.').unwrap_or(line.len());
            line[..end].parse::<f64>().unwrap_or(0.0)
        };
        sorted.sort_by(|a, b| number(a).total_cmp(&number(b)).then(a.cmp(b)));
    } else {
        sorted.sort_unstable();
    }
    if letters.contains('r') {
        sorted.reverse();
    }
    if letters.contains('u') {
        sorted.dedup();
    }
    say(&process, &lines(sorted.into_iter())).await
}

async fn uniq(arguments: Vec<String>, process: Process) -> i32 {
    let (letters, names) = flags(arguments);
    let text = match text("uniq", &names, &process).await {
        Ok(text) => text,
        Err(code) => return code,
    };
    let mut groups: Vec<(usize, &str)> = Vec::new();
    for line in text.lines() {
        match groups.last_mut() {
            Some((count, last)) if *last == line => *count += 1,
            _ => groups.push((1, line)),
        }
    }
    let mut out = String::new();
    for (count, line) in groups {
        if letters.contains('d') && count == 1 || letters.contains('u') && count > 1 {
            continue;
        }
        out += &if letters.contains('c') { format!("{count:>7} {line}\n") } else { format!("{line}\n") };
    }
    say(&process, &out).await
}

async fn cut(arguments: Vec<String>, process: Process) -> i32 {
    let (mut delimiter, mut fields, mut names) = ('\t', String::new(), Vec::new());
    let mut characters = false;
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let mut value =
            |inline: &str| if inline.is_empty() { rest.next().unwrap_or_default() } else { inline.to_owned() };
        if let Some(inline) = argument.strip_prefix("-d") {
            delimiter = value(inline).chars().next().unwrap_or('\t');
        } else if let Some(inline) = argument.strip_prefix("-f") {
            fields = value(inline);
        } else if let Some(inline) = argument.strip_prefix("-c") {
            (fields, characters) = (value(inline), true);
        } else {
            names.push(argument);
        }
    }
    let text = match text("cut", &names, &process).await {
        Ok(text) => text,
        Err(code) => return code,
    };
    let wanted = |number: usize| {
        fields.split(',').any(|range| match range.split_once('-') {
            Some((from, to)) => {
                number >= from.parse().unwrap_or(1) && (to.is_empty() || number <= to.parse().unwrap_or(0))
            }
            None => range.parse() == Ok(number),
        })
    };
    let mut out = String::new();
    for line in text.lines() {
        if characters {
            out.extend(line.chars().enumerate().filter(|(i, _)| wanted(i + 1)).map(|(_, c)| c));
        } else if line.contains(delimiter) {
            let kept: Vec<_> =
                line.split(delimiter).enumerate().filter(|(i, _)| wanted(i + 1)).map(|(_, f)| f).collect();
            out += &kept.join(&delimiter.to_string());
        } else {
            out += line;
        }
        out.push('\n');
    }
    say(&process, &out).await
}

async fn tr(arguments: Vec<String>, process: Process) -> i32 {
    let (letters, names) = flags(arguments);
    let expand = |set: &str| {
        let chars: Vec<char> = unescape(set, false).0.chars().collect();
        let mut out = Vec::new();
        let mut i = 0;
        while i < chars.len() {
            if i + 2 < chars.len() && chars[i + 1] == '-' {
                out.extend(chars[i]..=chars[i + 2]);
                i += 3;
            } else {
                out.push(chars[i]);
                i += 1;
            }
        }
        out
    };
    let from = expand(names.first().map_or("", String::as_str));
    let to = expand(names.get(1).map_or("", String::as_str));
    let text = match text("tr", &[], &process).await {
        Ok(text) => text,
        Err(code) => return code,
    };
    let out: String = if letters.contains('d') {
        text.chars().filter(|c| !from.contains(c)).collect()
    } else {
        let map = |c: char| match from.iter().position(|f| *f == c) {
            Some(i) => to.get(i).or(to.last()).copied().unwrap_or(c),
            None => c,
        };
        text.chars().map(map).collect()
    };
    say(&process, &out).await
}

async fn tee(arguments: Vec<String>, process: Process) -> i32 {
    let (letters, names) = flags(arguments);
    let all = match inputs("tee", &[], &process).await {
        Ok(all) => all,
        Err(code) => return code,
    };
    let mut status = 0;
    for name in names {
        let mut options = tokio::fs::OpenOptions::new();
        let append = letters.contains('a');
        let opened = options.create(true).write(true).append(append).truncate(!append).open(process.place(&name)).await;
        let written = match opened {
            Ok(file) => super::Sink::new(file).write(&all).await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            process.complain(format!("tee: {name}: {}", reason(&error))).await;
            status = 1;
        }
    }
    match process.stdout.write(&all).await {
        Ok(()) => status,
        Err(_) => BROKEN_PIPE,
    }
}

async fn ls(arguments: Vec<String>, process: Process) -> i32 {
    let (_, names) = flags(arguments);
    let here = vec![".".to_owned()];
    let mut status = 0;
    for name in if names.is_empty() { here } else { names } {
        let place = process.place(&name);
        let listed = match std::fs::read_dir(&place) {
            Ok(entries) => entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect(),
            Err(_) if place.exists() => vec![name.clone()],
            Err(error) => {
                process.complain(format!("ls: {name}: {}", reason(&error))).await;
                status = 1;
                continue;
            }
        };
        let mut listed: Vec<String> = listed.into_iter().filter(|n| !n.starts_with('.')).collect();
        listed.sort();
        if say(&process, &lines(listed.iter().map(String::as_str))).await != 0 {
            return BROKEN_PIPE;
        }
    }
    status
}

async fn seq(arguments: Vec<String>, process: Process) -> i32 {
    let numbers: Option<Vec<i64>> = arguments.iter().map(|a| a.parse().ok()).collect();
    let (first, step, last) = match numbers.as_deref() {
        Some([last]) => (1, 1, *last),
        Some([first, last]) => (*first, 1, *last),
        Some([first, step, last]) if *step != 0 => (*first, *step, *last),
        _ => {
            process.complain("seq: usage: seq [first [step]] last").await;
            return 1;
        }
    };
    let mut number = first;
    let mut out = String::new();
    while if step > 0 { number <= last } else { number >= last } {
        out += &format!("{number}\n");
        if out.len() > 8192 && say(&process, &std::mem::take(&mut out)).await != 0 {
            return BROKEN_PIPE;
        }
        number = number.saturating_add(step);
    }
    say(&process, &out).await
}

async fn nslookup(arguments: Vec<String>, process: Process) -> i32 {
    let Some(name) = arguments.iter().find(|a| !a.starts_with('-')) else {
        process.complain("nslookup: usage: nslookup name").await;
        return 1;
    };
    match process.net.resolve(name).await {
        Ok(addresses) => {
            let answers: String = addresses.iter().map(|a| format!("Name:\t{name}\nAddress: {a}\n")).collect();
            say(&process, &format!("Server:\t\tstolos-lab\n\n{answers}\n")).await
        }
        Err(_) => {
            let _ = say(&process, &format!("Server:\t\tstolos-lab\n\n** server can't find {name}: NXDOMAIN\n\n")).await;
            1
        }
    }
}

async fn test(mut arguments: Vec<String>, process: Process) -> i32 {
    // `[` is called with its closing bracket, `test` without; both come here.
    if arguments.last().is_some_and(|last| last == "]") {
        arguments.pop();
    }
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match judge(&words, &process) {
        Some(holds) => i32::from(!holds),
        None => {
            process.complain(format!("test: {}: unknown operand", words.join(" "))).await;
            2
        }
    }
}

fn judge(words: &[&str], process: &Process) -> Option<bool> {
    if let Some(i) = words.iter().position(|w| *w == "-o").filter(|i| *i > 0) {
        return Some(judge(&words[..i], process)? || judge(&words[i + 1..], process)?);
    }
    if let Some(i) = words.iter().position(|w| *w == "-a").filter(|i| *i > 0) {
        return Some(judge(&words[..i], process)? && judge(&words[i + 1..], process)?);
    }
    let number = |text: &str| text.trim().parse::<i64>().ok();
    match words {
        [] => Some(false),
        [one] => Some(!one.is_empty()),
        ["!", rest @ ..] => Some(!judge(rest, process)?),
        ["-z", text] => Some(text.is_empty()),
        ["-n", text] => Some(!text.is_empty()),
        ["-e", path] => Some(process.place(path).exists()),
        ["-f", path] => Some(process.place(path).is_file()),
        ["-d", path] => Some(process.place(path).is_dir()),
        ["-r" | "-w" | "-x", path] => Some(process.place(path).exists()),
        ["-s", path] => Some(std::fs::metadata(process.place(path)).is_ok_and(|m| m.len() > 0)),
        [left, "=" | "==", right] => Some(left == right),
        [left, "!=", right] => Some(left != right),
        [left, "-eq", right] => Some(number(left)? == number(right)?),
        [left, "-ne", right] => Some(number(left)? != number(right)?),
        [left, "-lt", right] => Some(number(left)? < number(right)?),
        [left, "-le", right] => Some(number(left)? <= number(right)?),
        [left, "-gt", right] => Some(number(left)? > number(right)?),
        [left, "-ge", right] => Some(number(left)? >= number(right)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let table = [
            ("version: v[12]", true, "Hello version: v2, x", true),
            ("^Hello.*x$", true, "Hello version: v2, x", true),
            ("^ello", true, "Hello", false),
            ("a\\|b", true, "xbx", true),
            ("a|b", true, "xbx", false),
            ("(a|b)+c", false, "xababc", true),
            ("x{2,3}y", false, "xy", false),
            ("x{2,3}y", false, "xxxy", true),
            ("[[:digit:]]+", false, "abc7", true),
            ("(a*)*b", false, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ];
        for (pattern, basic, text, expected) in table {
            let found = !Pattern::new(pattern, false, basic, false).unwrap().find(text).is_empty();
            assert_eq!(found, expected, "{pattern} in {text}");
        }
        assert_eq!(Pattern::new("v[0-9]", false, true, false).unwrap().find("v1 v2"), [(0, 2), (3, 5)]);
    }
}
