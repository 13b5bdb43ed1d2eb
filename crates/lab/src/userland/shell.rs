//! The shell: brush's parser, and an interpreter of our own that knows no processes.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use brush_parser::ast::{
    self, AndOr, ArithmeticExpr, ArithmeticTarget, AssignmentName, AssignmentValue, BinaryOperator, Command,
    CommandPrefixOrSuffixItem as Item, CompoundCommand, CompoundList, IoFileRedirectKind, IoFileRedirectTarget,
    IoRedirect, Pipeline, SeparatorOperator, SimpleCommand, UnaryAssignmentOperator, UnaryOperator,
};
use brush_parser::word::{
    self, Parameter, ParameterExpr, ParameterTestType, SpecialParameter, TildeExpr, WordPiece, WordPieceWithSource,
};
use brush_parser::{Parser, ParserOptions};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinSet;

use super::{BROKEN_PIPE, MAX_TEXT, NOT_FOUND, Process, Sink, Source, glob, pipe, tools};

/// Exit code of what Ctrl-C ended (128 + SIGINT).
const INTERRUPTED: i32 = 130;
/// How deep functions, substitutions and `eval` may call each other: each level is polled on the same stack.
const MAX_DEPTH: u32 = 20;

/// `sh [-c text [name [args…]]]`, or a script on standard input or in a file.
pub(super) async fn main(arguments: &[String], process: Process) -> i32 {
    let mut shell = Shell::new(process);
    let mut rest = arguments.iter();
    let mut text = None;
    let mut script = false;
    let mut words: Vec<String> = Vec::new();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--" => {}
            flags if flags.starts_with('-') && flags.len() > 1 && !script => {
                for flag in flags[1..].chars() {
                    match flag {
                        'c' => script = true,
                        'e' => shell.errexit = true,
                        'u' => shell.nounset = true,
                        'x' => shell.xtrace = true,
                        'i' | 'l' | 's' | 'o' => {}
                        other => {
                            shell.process.complain(format!("sh: illegal option -{other}")).await;
                            return 2;
                        }
                    }
                }
            }
            _ => {
                words.push(argument.clone());
                words.extend(rest.by_ref().cloned());
            }
        }
    }
    if script {
        if words.is_empty() {
            shell.process.complain("sh: -c requires an argument").await;
            return 2;
        }
        text = Some(words.remove(0));
        if !words.is_empty() {
            shell.name = words.remove(0);
        }
    } else if !words.is_empty() {
        shell.name = words.remove(0);
        match tokio::fs::read_to_string(shell.process.place(&shell.name)).await {
            Ok(found) => text = Some(found),
            Err(error) => {
                let name = shell.name.clone();
                shell.process.complain(format!("sh: can't open '{name}': {}", reason(&error))).await;
                return 2;
            }
        }
    }
    shell.positional = words;
    match text {
        Some(text) => shell.script(&text).await,
        None => shell.interactive().await,
    }
}

/// Why a command sequence ends early.
enum Jump {
    Break(u32),
    Continue(u32),
    Return(i32),
    Exit(i32),
}

type Flow = Result<i32, Jump>;

/// One shell; a clone is a subshell.
struct Shell {
    process: Process,
    name: String,
    /// Variables; whether each is exported.
    variables: HashMap<String, (String, bool)>,
    positional: Vec<String>,
    functions: HashMap<String, ast::FunctionBody>,
    status: i32,
    errexit: bool,
    nounset: bool,
    xtrace: bool,
    /// Inside a condition, where a failure is an answer.
    conditional: u32,
    depth: u32,
    background: JoinSet<i32>,
}

impl Shell {
    fn new(process: Process) -> Self {
        let variables = process.env.iter().map(|(name, value)| (name.clone(), (value.clone(), true))).collect();
        Self {
            process,
            name: "sh".to_owned(),
            variables,
            positional: Vec::new(),
            functions: HashMap::new(),
            status: 0,
            errexit: false,
            nounset: false,
            xtrace: false,
            conditional: 0,
            depth: 0,
            background: JoinSet::new(),
        }
    }

    fn subshell(&self) -> Self {
        Self {
            process: self.process.clone(),
            name: self.name.clone(),
            variables: self.variables.clone(),
            positional: self.positional.clone(),
            functions: self.functions.clone(),
            background: JoinSet::new(),
            ..*self
        }
    }

    async fn script(&mut self, text: &str) -> i32 {
        let flow = self.text(text).await;
        self.ended(flow)
    }

    /// Commands from standard input, one line (or as many as a command needs) at a time. At a terminal each is asked
    /// for, and Ctrl-C ends the one that runs.
    async fn interactive(&mut self) -> i32 {
        const LONGEST: usize = 64 * 1024;
        let interrupt = self.process.interrupt.clone();
        let mut pending = String::new();
        loop {
            if interrupt.is_some() {
                let prompt = if pending.is_empty() {
                    format!("{} # ", self.process.directory.display())
                } else {
                    "> ".to_owned()
                };
                let _ = self.process.stdout.write(prompt.as_bytes()).await;
            }
            let stdin = self.process.stdin.clone();
            let line = tokio::select! {
                line = stdin.read_line() => line,
                () = interrupted(interrupt.as_ref()) => {
                    pending.clear();
                    self.status = INTERRUPTED;
                    continue;
                }
            };
            let Ok(Some(line)) = line else {
                if interrupt.is_some() {
                    let _ = self.process.stdout.write(b"\n").await;
                }
                return if pending.trim().is_empty() { self.status } else { self.script(&pending).await };
            };
            pending += &line;
            pending.push('\n');
            if pending.trim().is_empty() {
                pending.clear();
                continue;
            }
            if parse(&pending).is_err_and(|problem| problem.contains("end of input")) && pending.len() < LONGEST {
                continue;
            }
            let text = std::mem::take(&mut pending);
            let flow = tokio::select! {
                flow = self.text(&text) => flow,
                () = interrupted(interrupt.as_ref()) => Ok(INTERRUPTED),
            };
            match flow {
                Err(Jump::Exit(code)) if interrupt.is_none() || text_exits(&text) => return code,
                flow => {
                    self.ended(flow);
                }
            }
        }
    }

    fn ended(&mut self, flow: Flow) -> i32 {
        self.status = match flow {
            Ok(code) | Err(Jump::Return(code) | Jump::Exit(code)) => code,
            Err(Jump::Break(_) | Jump::Continue(_)) => self.status,
        };
        self.status
    }

    async fn text(&mut self, text: &str) -> Flow {
        match parse(text) {
            Ok(program) => {
                for list in &program.complete_commands {
                    self.list(list).await?;
                }
                Ok(self.status)
            }
            Err(problem) => {
                self.process.complain(format!("{}: syntax error: {problem}", self.name)).await;
                self.status = 2;
                Err(Jump::Exit(2))
            }
        }
    }

    fn list<'a>(&'a mut self, list: &'a CompoundList) -> BoxFuture<'a, Flow> {
        async move {
            for item in &list.0 {
                match item.1 {
                    SeparatorOperator::Sequence => {
                        self.and_or(&item.0).await?;
                    }
                    SeparatorOperator::Async => {
                        let mut shell = self.subshell();
                        shell.process.stdin = Source::empty();
                        let work = item.0.clone();
                        self.background.spawn(stolos_serve::meter::inherit(async move {
                            let flow = shell.and_or(&work).await;
                            shell.ended(flow)
                        }));
                        self.status = 0;
                    }
                }
            }
            Ok(self.status)
        }
        .boxed()
    }

    async fn and_or(&mut self, list: &ast::AndOrList) -> Flow {
        let last = list.additional.len();
        self.conditional += u32::from(last > 0);
        let first = self.pipeline(&list.first).await;
        self.conditional -= u32::from(last > 0);
        let mut ran_last = last == 0;
        let mut negated = list.first.bang;
        first?;
        for (i, next) in list.additional.iter().enumerate() {
            let (wanted, pipeline) = match next {
                AndOr::And(pipeline) => (self.status == 0, pipeline),
                AndOr::Or(pipeline) => (self.status != 0, pipeline),
            };
            ran_last = wanted && i + 1 == last;
            if wanted {
                self.conditional += u32::from(!ran_last);
                let flow = self.pipeline(pipeline).await;
                self.conditional -= u32::from(!ran_last);
                negated = pipeline.bang;
                flow?;
            }
        }
        if self.errexit && self.status != 0 && self.conditional == 0 && ran_last && !negated {
            return Err(Jump::Exit(self.status));
        }
        Ok(self.status)
    }

    async fn pipeline(&mut self, pipeline: &Pipeline) -> Flow {
        let flow = if let [only] = &pipeline.seq[..] {
            self.command(only).await?
        } else {
            self.connected(&pipeline.seq).await
        };
        self.status = if pipeline.bang { i32::from(flow == 0) } else { flow };
        Ok(self.status)
    }

    /// Every command in a subshell of its own, all at once, each reading what the one before it writes.
    async fn connected(&mut self, commands: &[Command]) -> i32 {
        let mut input = self.process.stdin.clone();
        let mut running = Vec::new();
        for (i, command) in commands.iter().enumerate() {
            let mut shell = self.subshell();
            shell.process.stdin = input.clone();
            if i + 1 < commands.len() {
                let (write, read) = pipe();
                shell.process.stdout = write;
                input = read;
            }
            running.push(async move {
                let flow = shell.command(command).await;
                // The subshell ends here, and with it its ends of the pipes.
                shell.ended(flow)
            });
        }
        drop(input);
        futures::future::join_all(running).await.last().copied().unwrap_or(0)
    }

    fn command<'a>(&'a mut self, command: &'a Command) -> BoxFuture<'a, Flow> {
        async move {
            // Loops that do nothing but built-in work must still let others run.
            tokio::task::yield_now().await;
            let status = match command {
                Command::Simple(simple) => self.simple(simple).await?,
                Command::Compound(compound, redirects) => {
                    let redirects = redirects.iter().flat_map(|list| &list.0);
                    let saved = (self.process.stdin.clone(), self.process.stdout.clone(), self.process.stderr.clone());
                    let mut ready = Ok(());
                    for redirect in redirects {
                        ready = self.redirect(redirect).await;
                        if ready.is_err() {
                            break;
                        }
                    }
                    let flow = match ready {
                        Ok(()) => self.compound(compound).await,
                        Err(status) => Ok(status),
                    };
                    (self.process.stdin, self.process.stdout, self.process.stderr) = saved;
                    flow?
                }
                Command::Function(definition) => {
                    self.functions.insert(definition.fname.value.clone(), definition.body.clone());
                    0
                }
                Command::ExtendedTest(test, _) => {
                    self.process.complain(format!("{}: [[: not found (use [ … ])", self.name)).await;
                    let _ = test;
                    NOT_FOUND
                }
            };
            self.status = status;
            Ok(status)
        }
        .boxed()
    }

    async fn compound(&mut self, compound: &CompoundCommand) -> Flow {
        match compound {
            CompoundCommand::BraceGroup(group) => self.list(&group.list).await,
            CompoundCommand::Subshell(sub) => {
                let mut shell = self.subshell();
                let flow = shell.list(&sub.list).await;
                Ok(shell.ended(flow))
            }
            CompoundCommand::ForClause(clause) => {
                let mut values = Vec::new();
                match &clause.values {
                    Some(words) => {
                        for word in words {
                            values.extend(self.fields(&word.value).await?);
                        }
                    }
                    None => values.clone_from(&self.positional),
                }
                let mut status = 0;
                for value in values {
                    self.set(&clause.variable_name, value);
                    match self.turn(&clause.body.list).await? {
                        Some(code) => status = code,
                        None => break,
                    }
                }
                Ok(status)
            }
            CompoundCommand::WhileClause(clause) => self.repeat(&clause.0, &clause.1.list, true).await,
            CompoundCommand::UntilClause(clause) => self.repeat(&clause.0, &clause.1.list, false).await,
            CompoundCommand::IfClause(clause) => {
                if self.condition(&clause.condition).await? {
                    return self.list(&clause.then).await;
                }
                for other in clause.elses.iter().flatten() {
                    let holds = match &other.condition {
                        Some(condition) => self.condition(condition).await?,
                        None => true,
                    };
                    if holds {
                        return self.list(&other.body).await;
                    }
                }
                Ok(0)
            }
            CompoundCommand::CaseClause(clause) => {
                let value = self.one(&clause.value.value).await?;
                for case in &clause.cases {
                    for pattern in &case.patterns {
                        let pattern = self.pattern(&pattern.value).await?;
                        if glob::matches(&pattern, &value) {
                            return match &case.cmd {
                                Some(list) => self.list(list).await,
                                None => Ok(0),
                            };
                        }
                    }
                }
                Ok(0)
            }
            CompoundCommand::Arithmetic(command) => {
                let value = self.arithmetic(&command.expr.value).await?;
                Ok(i32::from(value == 0))
            }
            CompoundCommand::ArithmeticForClause(clause) => {
                if let Some(start) = &clause.initializer {
                    self.arithmetic(&start.value).await?;
                }
                let mut status = 0;
                loop {
                    if let Some(condition) = &clause.condition
                        && self.arithmetic(&condition.value).await? == 0
                    {
                        break;
                    }
                    match self.turn(&clause.body.list).await? {
                        Some(code) => status = code,
                        None => break,
                    }
                    if let Some(step) = &clause.updater {
                        self.arithmetic(&step.value).await?;
                    }
                }
                Ok(status)
            }
            CompoundCommand::Coprocess(_) => {
                self.process.complain(format!("{}: coproc: not supported", self.name)).await;
                Ok(2)
            }
        }
    }

    async fn repeat(&mut self, condition: &CompoundList, body: &CompoundList, wanted: bool) -> Flow {
        let mut status = 0;
        while self.condition(condition).await? == wanted {
            match self.turn(body).await? {
                Some(code) => status = code,
                None => break,
            }
        }
        Ok(status)
    }

    /// One turn of a loop; `None` when it is to end.
    async fn turn(&mut self, body: &CompoundList) -> Result<Option<i32>, Jump> {
        match self.list(body).await {
            Ok(code) => Ok(Some(code)),
            Err(Jump::Break(1)) => {
                self.status = 0;
                Ok(None)
            }
            Err(Jump::Continue(1)) => Ok(Some(0)),
            Err(Jump::Break(n)) => Err(Jump::Break(n - 1)),
            Err(Jump::Continue(n)) => Err(Jump::Continue(n - 1)),
            Err(other) => Err(other),
        }
    }

    async fn condition(&mut self, list: &CompoundList) -> Result<bool, Jump> {
        self.conditional += 1;
        let flow = self.list(list).await;
        self.conditional -= 1;
        Ok(flow? == 0)
    }

    /// # Flow
    ///
    /// 1. Expand words and assignments in order.
    /// 2. Redirect, for this command alone.
    /// 3. No words: the assignments are the shell's. Otherwise function, built-in, program.
    async fn simple(&mut self, command: &SimpleCommand) -> Flow {
        let prefix = command.prefix.iter().flat_map(|p| &p.0);
        let suffix = command.suffix.iter().flat_map(|s| &s.0);
        let mut words = Vec::new();
        let mut assignments = Vec::new();
        let mut redirects = Vec::new();
        let before = self.status;
        for item in prefix {
            match item {
                Item::AssignmentWord(assignment, _) => {
                    let AssignmentName::VariableName(name) = &assignment.name else { continue };
                    let AssignmentValue::Scalar(value) = &assignment.value else { continue };
                    let mut value = self.one(&value.value).await?;
                    if assignment.append {
                        value = self.get(name).unwrap_or_default() + &value;
                    }
                    assignments.push((name.clone(), value));
                }
                Item::IoRedirect(redirect) => redirects.push(redirect),
                Item::Word(word) => words.extend(self.fields(&word.value).await?),
                Item::ProcessSubstitution(..) => {}
            }
        }
        if let Some(word) = &command.word_or_name {
            words.extend(self.fields(&word.value).await?);
        }
        for item in suffix {
            match item {
                Item::Word(word) => words.extend(self.fields(&word.value).await?),
                // `export A=b`: one word, not split.
                Item::AssignmentWord(_, word) => words.push(self.one(&word.value).await?),
                Item::IoRedirect(redirect) => redirects.push(redirect),
                Item::ProcessSubstitution(..) => {
                    self.process.complain(format!("{}: process substitution is not supported", self.name)).await;
                    return Ok(2);
                }
            }
        }
        let saved = (self.process.stdin.clone(), self.process.stdout.clone(), self.process.stderr.clone());
        for redirect in redirects {
            if let Err(status) = self.redirect(redirect).await {
                (self.process.stdin, self.process.stdout, self.process.stderr) = saved;
                return Ok(status);
            }
        }
        let flow = if words.is_empty() {
            for (name, value) in assignments {
                self.set(&name, value);
            }
            // `x=$(false)` has the status of the substitution.
            Ok(if self.status == before { 0 } else { self.status })
        } else {
            if self.xtrace {
                self.process.complain(format!("+ {}", words.join(" "))).await;
            }
            // `exec` alone keeps its redirections.
            let kept = words.len() == 1 && words[0] == "exec";
            let flow = self.invoke(words, assignments).await;
            if kept {
                return flow;
            }
            flow
        };
        (self.process.stdin, self.process.stdout, self.process.stderr) = saved;
        flow
    }

    fn invoke(&mut self, words: Vec<String>, assignments: Vec<(String, String)>) -> BoxFuture<'_, Flow> {
        self.invoked(words, assignments).boxed()
    }

    async fn invoked(&mut self, words: Vec<String>, assignments: Vec<(String, String)>) -> Flow {
        if let Some(body) = self.functions.get(&words[0]).cloned() {
            return self.function(&body, words, assignments).await;
        }
        if is_builtin(&words[0]) {
            for (name, value) in assignments {
                self.set(&name, value);
            }
            return self.builtin(words).await;
        }
        let mut process = self.process.clone();
        process.env = self.exported();
        process.env.extend(assignments);
        if !super::knows(&words[0]) {
            self.process.complain(format!("{}: {}: not found", self.name, words[0])).await;
            return Ok(NOT_FOUND);
        }
        match super::run(words, process).await {
            // Nobody reads any more, and whoever writes in a loop would never notice.
            BROKEN_PIPE => Err(Jump::Exit(BROKEN_PIPE)),
            code => Ok(code),
        }
    }

    async fn function(
        &mut self,
        body: &ast::FunctionBody,
        words: Vec<String>,
        assignments: Vec<(String, String)>,
    ) -> Flow {
        if self.depth >= MAX_DEPTH {
            self.process.complain(format!("{}: {}: maximum function nesting exceeded", self.name, words[0])).await;
            return Ok(2);
        }
        for (name, value) in assignments {
            self.set(&name, value);
        }
        let saved = std::mem::replace(&mut self.positional, words[1..].to_vec());
        self.depth += 1;
        let flow = self.compound(&body.0).boxed().await;
        self.depth -= 1;
        self.positional = saved;
        match flow {
            Err(Jump::Return(code)) => Ok(code),
            flow => flow,
        }
    }

    async fn builtin(&mut self, words: Vec<String>) -> Flow {
        let number = |default: i32| words.get(1).map_or(Some(default), |n| n.parse::<i32>().ok());
        let argument = words.get(1).map_or("", String::as_str);
        match words[0].as_str() {
            ":" | "trap" | "umask" | "ulimit" => Ok(0),
            "exit" => Err(Jump::Exit(number(self.status).unwrap_or(2) & 255)),
            "return" => Err(Jump::Return(number(self.status).unwrap_or(2) & 255)),
            "break" => Err(Jump::Break(number(1).unwrap_or(1).max(1) as u32)),
            "continue" => Err(Jump::Continue(number(1).unwrap_or(1).max(1) as u32)),
            "cd" => {
                let to = if argument.is_empty() {
                    self.get("HOME").unwrap_or_else(|| "/".to_owned())
                } else {
                    argument.to_owned()
                };
                let place = self.process.place(&to);
                if !place.is_dir() {
                    self.process
                        .complain(format!("{}: cd: can't cd to {to}: No such file or directory", self.name))
                        .await;
                    return Ok(2);
                }
                let inside = place.strip_prefix(&self.process.root).unwrap_or(Path::new(""));
                self.process.directory = Path::new("/").join(inside);
                Ok(0)
            }
            "export" | "readonly" | "local" => {
                for word in &words[1..] {
                    let (name, value) = match word.split_once('=') {
                        Some((name, value)) => (name, Some(value.to_owned())),
                        None => (word.as_str(), None),
                    };
                    let value = value.or_else(|| self.get(name)).unwrap_or_default();
                    self.set(name, value);
                    if words[0] == "export"
                        && let Some(variable) = self.variables.get_mut(name)
                    {
                        variable.1 = true;
                    }
                }
                Ok(0)
            }
            "unset" => {
                for word in words[1..].iter().filter(|w| !w.starts_with('-')) {
                    self.variables.remove(word);
                    self.functions.remove(word);
                }
                Ok(0)
            }
            "set" => {
                let mut rest = words[1..].iter();
                while let Some(word) = rest.next() {
                    match word.as_str() {
                        "--" => {
                            self.positional = rest.by_ref().cloned().collect();
                        }
                        flags if flags.len() > 1 && (flags.starts_with('-') || flags.starts_with('+')) => {
                            let on = flags.starts_with('-');
                            for flag in flags[1..].chars() {
                                match flag {
                                    'e' => self.errexit = on,
                                    'u' => self.nounset = on,
                                    'x' => self.xtrace = on,
                                    'o' => {
                                        rest.next();
                                    }
                                    _ => {}
                                }
                            }
                        }
                        _ => {
                            self.positional = std::iter::once(word).chain(rest.by_ref()).cloned().collect();
                        }
                    }
                }
                Ok(0)
            }
            "shift" => {
                let count = number(1).unwrap_or(1).max(0) as usize;
                if count > self.positional.len() {
                    return Ok(1);
                }
                self.positional.drain(..count);
                Ok(0)
            }
            "eval" => {
                if self.depth >= MAX_DEPTH {
                    return Ok(2);
                }
                self.depth += 1;
                let flow = self.text(&words[1..].join(" ")).boxed().await;
                self.depth -= 1;
                flow
            }
            "exec" => {
                if words.len() == 1 {
                    return Ok(0);
                }
                let code = self.invoke(words[1..].to_vec(), Vec::new()).await?;
                Err(Jump::Exit(code))
            }
            "command" | "type" | "which" => match argument {
                "-v" | "-V" => self.find(&words[2..]).await,
                _ if words[0] != "command" => self.find(&words[1..]).await,
                "" => Ok(0),
                _ => self.invoke(words[1..].to_vec(), Vec::new()).await,
            },
            "read" => {
                let names: Vec<_> = words[1..].iter().filter(|w| !w.starts_with('-')).cloned().collect();
                let Ok(Some(line)) = self.process.stdin.read_line().await else { return Ok(1) };
                let names = if names.is_empty() { vec!["REPLY".to_owned()] } else { names };
                let mut rest = line.trim();
                for (i, name) in names.iter().enumerate() {
                    let value = if i + 1 == names.len() {
                        std::mem::take(&mut rest)
                    } else {
                        let (first, others) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                        rest = others.trim_start();
                        first
                    };
                    self.set(name, value.to_owned());
                }
                Ok(0)
            }
            "wait" => {
                let mut last = 0;
                while let Some(ended) = self.background.join_next().await {
                    last = ended.unwrap_or(1);
                }
                Ok(if words.len() > 1 { last } else { 0 })
            }
            "pwd" => self.say(&format!("{}\n", self.process.directory.display())).await,
            "source" | "." => match tokio::fs::read_to_string(self.process.place(argument)).await {
                Ok(text) => self.text(&text).boxed().await,
                Err(error) => {
                    self.process.complain(format!("{}: {argument}: {}", self.name, reason(&error))).await;
                    Ok(2)
                }
            },
            _ => Ok(NOT_FOUND),
        }
    }

    async fn find(&self, names: &[String]) -> Flow {
        let mut status = 0;
        for name in names {
            if is_builtin(name) || self.functions.contains_key(name) {
                self.say(&format!("{name}\n")).await?;
            } else if super::knows(name) {
                self.say(&format!("/bin/{}\n", super::name(name))).await?;
            } else {
                status = NOT_FOUND;
            }
        }
        Ok(status)
    }

    async fn say(&self, text: &str) -> Flow {
        match self.process.stdout.write(text.as_bytes()).await {
            Ok(()) => Ok(0),
            Err(_) => Err(Jump::Exit(BROKEN_PIPE)),
        }
    }

    /// Carries out a redirection, or says why not and returns the command's status.
    async fn redirect(&mut self, redirect: &IoRedirect) -> Result<(), i32> {
        match redirect {
            IoRedirect::File(fd, kind, target) => {
                let reads = matches!(kind, IoFileRedirectKind::Read | IoFileRedirectKind::DuplicateInput);
                let fd = fd.unwrap_or(if reads { 0 } else { 1 });
                let name = match target {
                    IoFileRedirectTarget::Fd(number) => number.to_string(),
                    IoFileRedirectTarget::Filename(word) | IoFileRedirectTarget::Duplicate(word) => {
                        self.one(&word.value).await.map_err(|_| 2)?
                    }
                    IoFileRedirectTarget::ProcessSubstitution(..) => return Err(2),
                };
                match kind {
                    IoFileRedirectKind::DuplicateInput => Ok(()),
                    IoFileRedirectKind::DuplicateOutput => {
                        let sink = match name.as_str() {
                            "1" => self.process.stdout.clone(),
                            "2" => self.process.stderr.clone(),
                            "-" => Sink::null(),
                            other => {
                                self.process.complain(format!("{}: {other}: bad file descriptor", self.name)).await;
                                return Err(2);
                            }
                        };
                        self.send(fd, sink);
                        Ok(())
                    }
                    IoFileRedirectKind::Read => {
                        self.process.stdin = self.input(&name).await?;
                        Ok(())
                    }
                    IoFileRedirectKind::Write | IoFileRedirectKind::Clobber => self.output(fd, &name, false).await,
                    IoFileRedirectKind::Append | IoFileRedirectKind::ReadAndWrite => self.output(fd, &name, true).await,
                }
            }
            IoRedirect::HereDocument(_, document) => {
                let text = document.doc.value.clone();
                let text = if document.requires_expansion {
                    let pieces = word::parse_heredoc(&text, &options()).map_err(|_| 2)?;
                    let mut segments = Vec::new();
                    self.pieces(&pieces, true, &mut segments).await.map_err(|_| 2)?;
                    joined(segments)
                } else {
                    text
                };
                let text: String = if document.remove_tabs {
                    text.lines().map(|line| format!("{}\n", line.trim_start_matches('\t'))).collect()
                } else {
                    text
                };
                self.process.stdin = Source::new(io::Cursor::new(text.into_bytes()));
                Ok(())
            }
            IoRedirect::HereString(_, word) => {
                let text = self.one(&word.value).await.map_err(|_| 2)? + "\n";
                self.process.stdin = Source::new(io::Cursor::new(text.into_bytes()));
                Ok(())
            }
            IoRedirect::OutputAndError(word, append) => {
                let name = self.one(&word.value).await.map_err(|_| 2)?;
                self.output(1, &name, *append).await?;
                self.process.stderr = self.process.stdout.clone();
                Ok(())
            }
        }
    }

    async fn input(&self, name: &str) -> Result<Source, i32> {
        match name {
            "/dev/null" => Ok(Source::empty()),
            "/dev/stdin" => Ok(self.process.stdin.clone()),
            _ => match tokio::fs::File::open(self.process.place(name)).await {
                Ok(file) => Ok(Source::new(file)),
                Err(error) => {
                    self.process.complain(format!("{}: can't open {name}: {}", self.name, reason(&error))).await;
                    Err(1)
                }
            },
        }
    }

    async fn output(&mut self, fd: i32, name: &str, append: bool) -> Result<(), i32> {
        let sink = match name {
            "/dev/null" => Sink::null(),
            "/dev/stdout" => self.process.stdout.clone(),
            "/dev/stderr" => self.process.stderr.clone(),
            _ => {
                let mut options = tokio::fs::OpenOptions::new();
                options.create(true).write(true).append(append).truncate(!append);
                match options.open(self.process.place(name)).await {
                    Ok(file) => Sink::new(file),
                    Err(error) => {
                        self.process.complain(format!("{}: can't create {name}: {}", self.name, reason(&error))).await;
                        return Err(1);
                    }
                }
            }
        };
        self.send(fd, sink);
        Ok(())
    }

    fn send(&mut self, fd: i32, sink: Sink) {
        match fd {
            1 => self.process.stdout = sink,
            2 => self.process.stderr = sink,
            _ => {}
        }
    }

    fn exported(&self) -> BTreeMap<String, String> {
        let exported = self.variables.iter().filter(|(_, (_, exported))| *exported);
        exported.map(|(name, (value, _))| (name.clone(), value.clone())).collect()
    }

    fn get(&self, name: &str) -> Option<String> {
        self.variables.get(name).map(|(value, _)| value.clone())
    }

    fn set(&mut self, name: &str, value: String) {
        self.variables.entry(name.to_owned()).or_default().0 = value;
    }

    /// A word as the fields it becomes.
    async fn fields(&mut self, word: &str) -> Result<Vec<String>, Jump> {
        let segments = self.expand(word).await?;
        let separators = self.get("IFS").unwrap_or_else(|| " \t\n".to_owned());
        let mut fields = Vec::new();
        let mut current: Option<String> = None;
        for segment in segments {
            match segment {
                Segment::Text(text) => current.get_or_insert_default().push_str(&text),
                Segment::Split(text) => {
                    for c in text.chars() {
                        if separators.contains(c) {
                            fields.extend(current.take());
                        } else {
                            current.get_or_insert_default().push(c);
                        }
                    }
                }
                Segment::Break => fields.extend(current.take()),
            }
        }
        fields.extend(current);
        Ok(fields)
    }

    /// A word as one string, as in an assignment.
    async fn one(&mut self, word: &str) -> Result<String, Jump> {
        Ok(joined(self.expand(word).await?))
    }

    /// A word as a pattern: what is quoted stands for itself.
    async fn pattern(&mut self, word: &str) -> Result<String, Jump> {
        let Ok(pieces) = word::parse(word, &options()) else { return Ok(word.to_owned()) };
        let mut pattern = String::new();
        for piece in pieces {
            let quoted = matches!(
                piece.piece,
                WordPiece::SingleQuotedText(_) | WordPiece::DoubleQuotedSequence(_) | WordPiece::EscapeSequence(_)
            );
            let mut segments = Vec::new();
            self.piece(&piece.piece, false, &mut segments).await?;
            let text = joined(segments);
            if quoted {
                for c in text.chars() {
                    if "*?[]\\".contains(c) {
                        pattern.push('\\');
                    }
                    pattern.push(c);
                }
            } else {
                pattern += &text;
            }
        }
        Ok(pattern)
    }

    async fn expand(&mut self, word: &str) -> Result<Vec<Segment>, Jump> {
        let mut segments = Vec::new();
        match word::parse(word, &options()) {
            Ok(pieces) => self.pieces(&pieces, false, &mut segments).await?,
            Err(error) => {
                self.process.complain(format!("{}: bad word: {error}", self.name)).await;
                return Err(Jump::Exit(2));
            }
        }
        Ok(segments)
    }

    async fn pieces(
        &mut self,
        pieces: &[WordPieceWithSource],
        quoted: bool,
        out: &mut Vec<Segment>,
    ) -> Result<(), Jump> {
        for piece in pieces {
            self.piece(&piece.piece, quoted, out).await?;
        }
        Ok(())
    }

    fn piece<'a>(
        &'a mut self,
        piece: &'a WordPiece,
        quoted: bool,
        out: &'a mut Vec<Segment>,
    ) -> BoxFuture<'a, Result<(), Jump>> {
        async move {
            match piece {
                WordPiece::Text(text) | WordPiece::SingleQuotedText(text) => out.push(Segment::Text(text.clone())),
                WordPiece::AnsiCQuotedText(text) => out.push(Segment::Text(tools::unescape(text, false).0)),
                WordPiece::DoubleQuotedSequence(inner) | WordPiece::GettextDoubleQuotedSequence(inner) => {
                    // `"$@"` without parameters is no field at all; any other pair of quotes is one.
                    let all = matches!(&inner[..], [only] if matches!(&only.piece,
                    WordPiece::ParameterExpansion(ParameterExpr::Parameter {
                        parameter: Parameter::Special(SpecialParameter::AllPositionalParameters { concatenate: false }),
                        ..
                    })));
                    if !all {
                        out.push(Segment::Text(String::new()));
                    }
                    self.pieces(inner, true, out).await?;
                }
                WordPiece::TildeExpansion(TildeExpr::Home) => {
                    out.push(Segment::Text(self.get("HOME").unwrap_or_else(|| "/".to_owned())));
                }
                WordPiece::TildeExpansion(_) => out.push(Segment::Text("~".to_owned())),
                WordPiece::ParameterExpansion(expansion) => self.parameter(expansion, quoted, out).await?,
                WordPiece::CommandSubstitution(text) => {
                    let text = self.substitute(text).await?;
                    out.push(Segment::expanded(text, quoted));
                }
                WordPiece::BackquotedCommandSubstitution(text) => {
                    let text = text.replace("\\`", "`").replace("\\$", "$").replace("\\\\", "\\");
                    let text = self.substitute(&text).await?;
                    out.push(Segment::expanded(text, quoted));
                }
                WordPiece::EscapeSequence(text) => {
                    let text = text.strip_prefix('\\').unwrap_or(text);
                    out.push(Segment::Text(if text == "\n" { String::new() } else { text.to_owned() }));
                }
                WordPiece::ArithmeticExpression(expression) => {
                    let value = self.arithmetic(&expression.value).await?;
                    out.push(Segment::expanded(value.to_string(), quoted));
                }
            }
            Ok(())
        }
        .boxed()
    }

    /// What a command writes, without its last newlines.
    async fn substitute(&mut self, text: &str) -> Result<String, Jump> {
        let mut shell = self.subshell();
        if self.depth >= MAX_DEPTH {
            return Err(Jump::Exit(2));
        }
        shell.depth += 1;
        let (write, read) = pipe();
        shell.process.stdout = write;
        let text = text.to_owned();
        let running = async move { shell.script(&text).await };
        let reading = async move {
            let all = read.read_all().await.unwrap_or_default();
            drop(read);
            all
        };
        let (status, mut output) = futures::future::join(running, reading).await;
        self.status = status;
        while output.last() == Some(&b'\n') {
            output.pop();
        }
        debug_assert!(output.len() as u64 <= MAX_TEXT);
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    fn value(&self, parameter: &Parameter) -> Option<String> {
        match parameter {
            Parameter::Positional(0) | Parameter::Special(SpecialParameter::ShellName) => Some(self.name.clone()),
            Parameter::Positional(n) => self.positional.get(*n as usize - 1).cloned(),
            Parameter::Special(special) => Some(match special {
                SpecialParameter::AllPositionalParameters { .. } => self.positional.join(" "),
                SpecialParameter::PositionalParameterCount => self.positional.len().to_string(),
                SpecialParameter::LastExitStatus => self.status.to_string(),
                SpecialParameter::CurrentOptionFlags => if self.errexit { "e" } else { "" }.to_owned(),
                SpecialParameter::ProcessId => "1".to_owned(),
                _ => String::new(),
            }),
            Parameter::Named(name) => match name.as_str() {
                "PWD" => Some(self.process.directory.display().to_string()),
                "RANDOM" => Some(rand::random_range(0..32768).to_string()),
                "HOSTNAME" if !self.variables.contains_key(name) => Some(self.process.hostname.clone()),
                _ => self.get(name),
            },
            _ => None,
        }
    }

    async fn parameter(&mut self, expansion: &ParameterExpr, quoted: bool, out: &mut Vec<Segment>) -> Result<(), Jump> {
        if let ParameterExpr::Parameter {
            parameter: Parameter::Special(SpecialParameter::AllPositionalParameters { concatenate }),
            ..
        } = expansion
            && (!quoted || !concatenate)
        {
            for (i, word) in self.positional.iter().enumerate() {
                if i > 0 {
                    out.push(Segment::Break);
                }
                out.push(Segment::expanded(word.clone(), quoted));
            }
            return Ok(());
        }
        let usable = |value: Option<String>, test: &ParameterTestType| match test {
            ParameterTestType::UnsetOrNull => value.filter(|v| !v.is_empty()),
            ParameterTestType::Unset => value,
        };
        let text = match expansion {
            ParameterExpr::Parameter { parameter, .. } => match self.value(parameter) {
                Some(value) => value,
                None if self.nounset => {
                    self.process.complain(format!("{}: {parameter}: parameter not set", self.name)).await;
                    return Err(Jump::Exit(2));
                }
                None => String::new(),
            },
            ParameterExpr::UseDefaultValues { parameter, test_type, default_value, .. } => {
                match usable(self.value(parameter), test_type) {
                    Some(value) => value,
                    None => self.one(default_value.as_deref().unwrap_or("")).await?,
                }
            }
            ParameterExpr::AssignDefaultValues { parameter, test_type, default_value, .. } => {
                match usable(self.value(parameter), test_type) {
                    Some(value) => value,
                    None => {
                        let value = self.one(default_value.as_deref().unwrap_or("")).await?;
                        if let Parameter::Named(name) = parameter {
                            self.set(name, value.clone());
                        }
                        value
                    }
                }
            }
            ParameterExpr::IndicateErrorIfNullOrUnset { parameter, test_type, error_message, .. } => {
                match usable(self.value(parameter), test_type) {
                    Some(value) => value,
                    None => {
                        let message = self.one(error_message.as_deref().unwrap_or("parameter not set")).await?;
                        self.process.complain(format!("{}: {parameter}: {message}", self.name)).await;
                        return Err(Jump::Exit(2));
                    }
                }
            }
            ParameterExpr::UseAlternativeValue { parameter, test_type, alternative_value, .. } => {
                match usable(self.value(parameter), test_type) {
                    Some(_) => self.one(alternative_value.as_deref().unwrap_or("")).await?,
                    None => String::new(),
                }
            }
            ParameterExpr::ParameterLength { parameter, .. } => {
                self.value(parameter).unwrap_or_default().chars().count().to_string()
            }
            ParameterExpr::RemoveSmallestSuffixPattern { parameter, pattern, .. } => {
                self.trimmed(parameter, pattern.as_deref(), |text, p| glob::without_suffix(text, p, false)).await?
            }
            ParameterExpr::RemoveLargestSuffixPattern { parameter, pattern, .. } => {
                self.trimmed(parameter, pattern.as_deref(), |text, p| glob::without_suffix(text, p, true)).await?
            }
            ParameterExpr::RemoveSmallestPrefixPattern { parameter, pattern, .. } => {
                self.trimmed(parameter, pattern.as_deref(), |text, p| glob::without_prefix(text, p, false)).await?
            }
            ParameterExpr::RemoveLargestPrefixPattern { parameter, pattern, .. } => {
                self.trimmed(parameter, pattern.as_deref(), |text, p| glob::without_prefix(text, p, true)).await?
            }
            ParameterExpr::Substring { parameter, offset, length, .. } => {
                let value: Vec<char> = self.value(parameter).unwrap_or_default().chars().collect();
                let offset = self.arithmetic(&offset.value).await?;
                let start = if offset < 0 { value.len() as i64 + offset } else { offset };
                let start = start.clamp(0, value.len() as i64) as usize;
                let length = match length {
                    Some(length) => self.arithmetic(&length.value).await?.max(0) as usize,
                    None => value.len(),
                };
                value[start..].iter().take(length).collect()
            }
            other => {
                self.process.complain(format!("{}: bad substitution: {other:?}", self.name)).await;
                return Err(Jump::Exit(2));
            }
        };
        out.push(Segment::expanded(text, quoted));
        Ok(())
    }

    async fn trimmed(
        &mut self,
        parameter: &Parameter,
        pattern: Option<&str>,
        trim: impl for<'a> Fn(&'a str, &str) -> &'a str,
    ) -> Result<String, Jump> {
        let value = self.value(parameter).unwrap_or_default();
        let pattern = self.pattern(pattern.unwrap_or("")).await?;
        Ok(trim(&value, &pattern).to_owned())
    }

    async fn arithmetic(&mut self, text: &str) -> Result<i64, Jump> {
        let text = self.one(text).await?;
        let result = match brush_parser::arithmetic::parse(&text) {
            Ok(expression) => self.evaluate(&expression),
            Err(error) => Err(error.to_string()),
        };
        match result {
            Ok(value) => Ok(value),
            Err(problem) => {
                self.process.complain(format!("{}: arithmetic: {problem}", self.name)).await;
                Err(Jump::Exit(2))
            }
        }
    }

    fn evaluate(&mut self, expression: &ArithmeticExpr) -> Result<i64, String> {
        Ok(match expression {
            ArithmeticExpr::Literal(value) => *value,
            ArithmeticExpr::Reference(target) => self.number(target),
            ArithmeticExpr::UnaryOp(operator, operand) => {
                let value = self.evaluate(operand)?;
                match operator {
                    UnaryOperator::UnaryPlus => value,
                    UnaryOperator::UnaryMinus => value.wrapping_neg(),
                    UnaryOperator::BitwiseNot => !value,
                    UnaryOperator::LogicalNot => i64::from(value == 0),
                }
            }
            ArithmeticExpr::BinaryOp(BinaryOperator::LogicalAnd, left, right) => {
                i64::from(self.evaluate(left)? != 0 && self.evaluate(right)? != 0)
            }
            ArithmeticExpr::BinaryOp(BinaryOperator::LogicalOr, left, right) => {
                i64::from(self.evaluate(left)? != 0 || self.evaluate(right)? != 0)
            }
            ArithmeticExpr::BinaryOp(operator, left, right) => {
                let (left, right) = (self.evaluate(left)?, self.evaluate(right)?);
                calculate(operator, left, right)?
            }
            ArithmeticExpr::Conditional(condition, yes, no) => {
                if self.evaluate(condition)? != 0 {
                    self.evaluate(yes)?
                } else {
                    self.evaluate(no)?
                }
            }
            ArithmeticExpr::Assignment(target, value) => {
                let value = self.evaluate(value)?;
                self.assign(target, value)
            }
            ArithmeticExpr::BinaryAssignment(operator, target, value) => {
                let value = self.evaluate(value)?;
                let value = calculate(operator, self.number(target), value)?;
                self.assign(target, value)
            }
            ArithmeticExpr::UnaryAssignment(operator, target) => {
                let value = self.number(target);
                match operator {
                    UnaryAssignmentOperator::PrefixIncrement => self.assign(target, value.wrapping_add(1)),
                    UnaryAssignmentOperator::PrefixDecrement => self.assign(target, value.wrapping_sub(1)),
                    UnaryAssignmentOperator::PostfixIncrement => {
                        self.assign(target, value.wrapping_add(1));
                        value
                    }
                    UnaryAssignmentOperator::PostfixDecrement => {
                        self.assign(target, value.wrapping_sub(1));
                        value
                    }
                }
            }
        })
    }

    fn number(&self, target: &ArithmeticTarget) -> i64 {
        match target {
            ArithmeticTarget::Variable(name) => self.get(name).and_then(|v| v.trim().parse().ok()).unwrap_or(0),
            ArithmeticTarget::ArrayElement(..) => 0,
        }
    }

    fn assign(&mut self, target: &ArithmeticTarget, value: i64) -> i64 {
        if let ArithmeticTarget::Variable(name) = target {
            self.set(name, value.to_string());
        }
        value
    }
}

/// Waits for Ctrl-C; without a terminal, for ever.
async fn interrupted(interrupt: Option<&std::sync::Arc<tokio::sync::Notify>>) {
    match interrupt {
        Some(interrupt) => interrupt.notified().await,
        None => std::future::pending().await,
    }
}

/// Whether somebody at a terminal means to leave: a mistake ends a script, but not a terminal's shell.
fn text_exits(text: &str) -> bool {
    text.split(|c: char| c.is_whitespace() || ";&|".contains(c)).any(|word| matches!(word, "exit" | "exec"))
}

fn calculate(operator: &BinaryOperator, left: i64, right: i64) -> Result<i64, String> {
    let zero = || "divide by zero".to_owned();
    Ok(match operator {
        BinaryOperator::Add => left.wrapping_add(right),
        BinaryOperator::Subtract => left.wrapping_sub(right),
        BinaryOperator::Multiply => left.wrapping_mul(right),
        BinaryOperator::Divide => left.checked_div(right).ok_or_else(zero)?,
        BinaryOperator::Modulo => left.checked_rem(right).ok_or_else(zero)?,
        BinaryOperator::Power => left.wrapping_pow(u32::try_from(right).map_err(|_| "exponent less than 0")?),
        BinaryOperator::ShiftLeft => left.wrapping_shl(right as u32),
        BinaryOperator::ShiftRight => left.wrapping_shr(right as u32),
        BinaryOperator::BitwiseAnd => left & right,
        BinaryOperator::BitwiseOr => left | right,
        BinaryOperator::BitwiseXor => left ^ right,
        BinaryOperator::Equals => i64::from(left == right),
        BinaryOperator::NotEquals => i64::from(left != right),
        BinaryOperator::LessThan => i64::from(left < right),
        BinaryOperator::LessThanOrEqualTo => i64::from(left <= right),
        BinaryOperator::GreaterThan => i64::from(left > right),
        BinaryOperator::GreaterThanOrEqualTo => i64::from(left >= right),
        BinaryOperator::LogicalAnd => i64::from(left != 0 && right != 0),
        BinaryOperator::LogicalOr => i64::from(left != 0 || right != 0),
        BinaryOperator::Comma => right,
    })
}

/// A part of an expanded word.
enum Segment {
    /// Stands as it is.
    Text(String),
    /// Is split into fields.
    Split(String),
    /// A field ends here.
    Break,
}

impl Segment {
    fn expanded(text: String, quoted: bool) -> Self {
        if quoted { Self::Text(text) } else { Self::Split(text) }
    }
}

fn joined(segments: Vec<Segment>) -> String {
    let texts = segments.into_iter().map(|segment| match segment {
        Segment::Text(text) | Segment::Split(text) => text,
        Segment::Break => " ".to_owned(),
    });
    texts.collect()
}

fn is_builtin(name: &str) -> bool {
    const BUILTINS: [&str; 26] = [
        ":", ".", "break", "cd", "command", "continue", "eval", "exec", "exit", "export", "local", "pwd", "read",
        "readonly", "return", "set", "shift", "source", "trap", "type", "ulimit", "umask", "unset", "wait", "which",
        "alias",
    ];
    BUILTINS.contains(&name)
}

fn options() -> ParserOptions {
    ParserOptions { posix_mode: true, sh_mode: true, enable_extended_globbing: false, ..ParserOptions::default() }
}

fn parse(text: &str) -> Result<ast::Program, String> {
    let mut parser = Parser::new(io::Cursor::new(text.as_bytes()), &options());
    parser.parse_program().map_err(|error| error.to_string())
}

pub(super) fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "No such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "Permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "Is a directory".to_owned(),
        _ => error.to_string(),
    }
}
