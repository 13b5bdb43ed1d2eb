//! `tar`: what `kubectl cp` and people ask of it. Archives are streamed: nothing is held but a block.
//!
//! The format is POSIX ustar, with GNU's and pax's way of writing long names. Owners are not kept, as everything here
//! belongs to whoever runs the lab; links never lead out of a container's root.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::shell::reason;
use super::{Process, Sink, Source};

const BLOCK: usize = 512;
/// The longest name that is read.
const LONGEST: u64 = 4096;
/// The most entries of an archive that is made.
const MOST: usize = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Create,
    Extract,
    List,
}

#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    mode: Mode,
    /// `-` is a standard stream.
    file: String,
    /// Where each name is looked for, and where things go.
    directory: PathBuf,
    names: Vec<(PathBuf, String)>,
    verbose: bool,
    keep_time: bool,
}

/// The arguments, as people write them: `-xmf - -C dir`, `xmf - -C dir`, `cf - name`.
fn wanted(arguments: &[String]) -> Result<Wanted, String> {
    let mut mode = None;
    let mut wanted = Wanted {
        mode: Mode::List,
        file: "-".to_owned(),
        directory: PathBuf::new(),
        names: Vec::new(),
        verbose: false,
        keep_time: true,
    };
    let mut rest = arguments.iter();
    let mut first = true;
    while let Some(argument) = rest.next() {
        let mut value = |option: &str| {
            let found = rest.next().cloned();
            found.ok_or_else(|| format!("tar: option requires an argument -- '{option}'"))
        };
        let letters = match argument.as_str() {
            "--create" => "c",
            "--extract" | "--get" => "x",
            "--list" => "t",
            "--verbose" => "v",
            "--touch" => "m",
            "--no-same-permissions" | "--no-same-owner" | "--numeric-owner" | "--preserve-permissions" => "",
            "--directory" => "C",
            "--file" => "f",
            long if long.starts_with("--file=") => {
                long.trim_start_matches("--file=").clone_into(&mut wanted.file);
                ""
            }
            long if long.starts_with("--directory=") => {
                wanted.directory.push(long.trim_start_matches("--directory="));
                ""
            }
            long if long.starts_with("--") && long.len() > 2 => {
                return Err(format!("tar: unrecognized option '{long}'"));
            }
            short if short.starts_with('-') && short.len() > 1 => &short[1..],
            old if first => old,
            name => {
                wanted.names.push((wanted.directory.clone(), name.to_owned()));
                ""
            }
        };
        first = false;
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            let mut option = |letter: &str| match letters.as_str() {
                // `-f-` and `-C/tmp` have the value in the same word; `xmf -` in the next.
                joined if !joined.is_empty() && argument.starts_with('-') => {
                    let joined = joined.to_owned();
                    letters = "".chars();
                    Ok(joined)
                }
                _ => value(letter),
            };
            match letter {
                'c' => mode = Some(Mode::Create),
                'x' => mode = Some(Mode::Extract),
                't' => mode = Some(Mode::List),
                'f' => wanted.file = option("f")?,
                'C' => wanted.directory.push(option("C")?),
                'v' => wanted.verbose = true,
                'm' => wanted.keep_time = false,
                'p' | 'o' | 'h' => {}
                'z' | 'j' | 'J' => return Err("tar: compression is not supported here".to_owned()),
                other => return Err(format!("tar: invalid option -- '{other}'")),
            }
        }
    }
    wanted.mode = mode.ok_or("tar: must specify one of -c, -x, -t")?;
    if wanted.mode == Mode::Create && wanted.names.is_empty() {
        return Err("tar: empty archive".to_owned());
    }
    Ok(wanted)
}

/// Runs `tar`.
pub(super) async fn main(arguments: Vec<String>, process: Process) -> i32 {
    let wanted = match wanted(&arguments) {
        Ok(wanted) => wanted,
        Err(problem) => {
            process.complain(problem).await;
            return 2;
        }
    };
    let result = match wanted.mode {
        Mode::Create => create(&wanted, &process).await,
        Mode::Extract | Mode::List => read(&wanted, &process).await,
    };
    match result {
        Ok(status) => status,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => super::BROKEN_PIPE,
        Err(error) => {
            process.complain(format!("tar: {}", reason(&error))).await;
            2
        }
    }
}

/// What kind of thing an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    File,
    Folder,
    Link(String),
    HardLink(String),
    /// A name for the next entry, pax records for it, or something that is not made here.
    Other(u8),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: String,
    kind: Kind,
    mode: u32,
    size: u64,
    time: u64,
}

/// A header block, and before it a longer name's if it does not fit.
fn write_header(entry: &Entry) -> Vec<u8> {
    let (flag, link) = match &entry.kind {
        Kind::File => (b'0', ""),
        Kind::Folder => (b'5', ""),
        Kind::Link(to) => (b'2', to.as_str()),
        Kind::HardLink(to) => (b'1', to.as_str()),
        Kind::Other(flag) => (*flag, ""),
    };
    let mut out = Vec::with_capacity(BLOCK);
    for (text, flag) in [(entry.name.as_str(), b'L'), (link, b'K')] {
        if text.len() > 100 {
            let bytes = [text.as_bytes(), &[0]].concat();
            out.extend(block("././@LongLink", flag, "", 0, bytes.len() as u64, 0));
            out.extend(&bytes);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
    }
    out.extend(block(&entry.name, flag, link, entry.mode, entry.size, entry.time));
    out
}

fn block(name: &str, flag: u8, link: &str, mode: u32, size: u64, time: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, most: usize, bytes: &[u8]| {
        let count = bytes.len().min(most);
        block[at..at + count].copy_from_slice(&bytes[..count]);
    };
    put(0, 100, name.as_bytes());
    put(100, 8, format!("{:07o}\0", mode & 0o7777).as_bytes());
    put(108, 8, b"0000000\0");
    put(116, 8, b"0000000\0");
    if size < 1 << 33 {
        put(124, 12, format!("{size:011o}\0").as_bytes());
    } else {
        // GNU's way beyond 8 GiB: a number in base 256.
        put(124, 12, &[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat());
    }
    put(136, 12, format!("{:011o}\0", time & 0o777_7777_7777).as_bytes());
    put(148, 8, b"        ");
    put(156, 1, &[flag]);
    put(157, 100, link.as_bytes());
    put(257, 8, b"ustar  \0");
    put(265, 32, b"root");
    put(297, 32, b"root");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// The entry of a header block; `None` for a block of zeros, which ends an archive.
fn read_header(block: &[u8; BLOCK]) -> io::Result<Option<Entry>> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "This does not look like a tar archive");
    let text = |from: usize, to: usize| {
        let field = block[from..to].split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(field).into_owned()
    };
    let number = |from: usize, to: usize| -> io::Result<u64> {
        let field = &block[from..to];
        if field[0] & 0x80 != 0 {
            let (high, low) = field.split_at(field.len().saturating_sub(8));
            let fits = high.iter().enumerate().all(|(at, byte)| *byte == if at == 0 { 0x80 } else { 0 });
            let low = low.try_into().map_err(|_| broken())?;
            return if fits { Ok(u64::from_be_bytes(low)) } else { Err(broken()) };
        }
        let text = text(from, to);
        let text = text.trim();
        if text.is_empty() { Ok(0) } else { u64::from_str_radix(text, 8).map_err(|_| broken()) }
    };
    let sum: u64 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) }).sum();
    if number(148, 156)? != sum {
        return Err(broken());
    }
    let mut name = text(0, 100);
    // POSIX keeps the beginning of a long name apart; GNU has other things there.
    if &block[257..263] == b"ustar\0" && block[345] != 0 {
        name = format!("{}/{name}", text(345, 500));
    }
    let link = text(157, 257);
    let kind = match block[156] {
        b'0' | 0 | b'7' if name.ends_with('/') => Kind::Folder,
        b'0' | 0 | b'7' => Kind::File,
        b'1' => Kind::HardLink(link),
        b'2' => Kind::Link(link),
        b'5' => Kind::Folder,
        other => Kind::Other(other),
    };
    let mode = u32::try_from(number(100, 108)? & 0o7777).unwrap_or_default();
    Ok(Some(Entry { name, kind, mode, size: number(124, 136)?, time: number(136, 148)? }))
}

/// The records of a pax header: `27 path=some/name\n`.
fn pax(mut bytes: &[u8]) -> Vec<(String, String)> {
    let mut records = Vec::new();
    while let Some(space) = bytes.iter().position(|byte| *byte == b' ') {
        let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|text| text.parse::<usize>().ok());
        let Some((record, rest)) = length.and_then(|length| bytes.split_at_checked(length)) else { break };
        let Some(record) = record.get(space + 1..) else { break };
        if let Some((key, value)) = String::from_utf8_lossy(record).trim_end_matches('\n').split_once('=') {
            records.push((key.to_owned(), value.to_owned()));
        }
        bytes = rest;
    }
    records
}

/// # Flow
///
/// 1. Names are followed breadth first, folders before what is in them.
/// 2. What changes its size while it is read is cut or filled up, as the size is written first.
async fn create(wanted: &Wanted, process: &Process) -> io::Result<i32> {
    let to = match wanted.file.as_str() {
        "-" => process.stdout.clone(),
        file => Sink::new(tokio::fs::File::create(process.place(file)).await?),
    };
    let mut status = 0;
    let (mut stripped, mut written) = (false, false);
    let mut left: Vec<(PathBuf, String)> = wanted.names.iter().rev().cloned().collect();
    let mut count = 0;
    while let Some((directory, name)) = left.pop() {
        count += 1;
        if count > MOST {
            return Err(io::Error::other("too many files"));
        }
        let place = process.place(&directory.join(&name).to_string_lossy());
        let (kind, metadata) = match kind_of(&place) {
            Ok(found) => found,
            Err(error) => {
                process.complain(format!("tar: {name}: Cannot stat: {}", reason(&error))).await;
                status = 2;
                continue;
            }
        };
        if name.starts_with('/') && !stripped {
            stripped = true;
            process.complain("tar: Removing leading `/' from member names").await;
        }
        let trimmed = name.trim_start_matches('/').trim_end_matches('/');
        let inside = if trimmed.is_empty() { "." } else { trimmed };
        let folder = kind == Kind::Folder;
        let size = if kind == Kind::File { metadata.len() } else { 0 };
        let entry = Entry {
            name: if folder { format!("{inside}/") } else { inside.to_owned() },
            kind,
            mode: metadata.mode() & 0o7777,
            size,
            time: u64::try_from(metadata.mtime()).unwrap_or_default(),
        };
        if wanted.verbose {
            process.complain(&entry.name).await;
        }
        let file = match entry.kind {
            Kind::File => match tokio::fs::File::open(&place).await {
                Ok(file) => Some(file),
                Err(error) => {
                    process.complain(format!("tar: {name}: Cannot open: {}", reason(&error))).await;
                    status = 2;
                    continue;
                }
            },
            _ => None,
        };
        to.write(&write_header(&entry)).await?;
        written = true;
        if let Some(mut file) = file {
            send(&mut file, size, &to).await?;
        }
        if folder {
            let mut inner: Vec<_> = std::fs::read_dir(&place)?
                .flatten()
                .map(|found| format!("{}/{}", name.trim_end_matches('/'), found.file_name().to_string_lossy()))
                .collect();
            inner.sort_by(|a, b| b.cmp(a));
            left.extend(inner.into_iter().map(|name| (directory.clone(), name)));
        }
    }
    // An archive of nothing but failures has no end: `kubectl cp` would take it for a success.
    if written {
        to.write(&[0; 2 * BLOCK]).await?;
    }
    Ok(status)
}

/// What is at a place. Links that lead elsewhere on the machine are a container's mounts, and are followed.
fn kind_of(place: &Path) -> io::Result<(Kind, Metadata)> {
    let mut metadata = place.symlink_metadata()?;
    if metadata.is_symlink() {
        let to = std::fs::read_link(place)?;
        if to.is_relative() {
            return Ok((Kind::Link(to.to_string_lossy().into_owned()), metadata));
        }
        metadata = place.metadata()?;
    }
    let kind = if metadata.is_dir() { Kind::Folder } else { Kind::File };
    Ok((kind, metadata))
}

async fn send(file: &mut (impl AsyncRead + Unpin), size: u64, to: &Sink) -> io::Result<()> {
    let mut buffer = vec![0; 32 << 10];
    let mut left = size;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = file.read(&mut buffer[..most]).await?;
        if count == 0 {
            // It became shorter.
            buffer.fill(0);
        }
        let count = if count == 0 { most } else { count };
        to.write(&buffer[..count]).await?;
        left -= count as u64;
    }
    to.write(&vec![0; padding(size)]).await
}

fn padding(size: u64) -> usize {
    usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or_default()
}

/// Fills `buffer`; `false` at the end of input before its first byte.
async fn fill(from: &Source, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]).await? {
            0 if filled == 0 => return Ok(false),
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "Unexpected EOF in archive")),
            count => filled += count,
        }
    }
    Ok(true)
}

/// Passes the next `size` bytes and their padding to `to`.
async fn receive(from: &Source, size: u64, mut to: Option<&mut tokio::fs::File>) -> io::Result<()> {
    let mut buffer = vec![0; 32 << 10];
    let mut left = size;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = from.read(&mut buffer[..most]).await?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "Unexpected EOF in archive"));
        }
        if let Some(file) = &mut to {
            file.write_all(&buffer[..count]).await?;
        }
        left -= count as u64;
    }
    let mut rest = vec![0; padding(size)];
    fill(from, &mut rest).await?;
    Ok(())
}

async fn text(from: &Source, size: u64) -> io::Result<Vec<u8>> {
    if size > 16 * LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long a name in the archive"));
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
    fill(from, &mut bytes).await?;
    let mut rest = vec![0; padding(size)];
    fill(from, &mut rest).await?;
    Ok(bytes)
}

fn name_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// Extracts or lists.
async fn read(wanted: &Wanted, process: &Process) -> io::Result<i32> {
    let from = match wanted.file.as_str() {
        "-" => process.stdin.clone(),
        file => Source::new(tokio::fs::File::open(process.place(file)).await?),
    };
    let mut status = 0;
    let (mut long_name, mut long_link, mut long_size) = (None, None, None);
    let mut block = [0; BLOCK];
    while fill(&from, &mut block).await? {
        let Some(mut entry) = read_header(&block)? else { break };
        match entry.kind {
            Kind::Other(b'L') => {
                long_name = Some(name_of(&text(&from, entry.size).await?));
                continue;
            }
            Kind::Other(b'K') => {
                long_link = Some(name_of(&text(&from, entry.size).await?));
                continue;
            }
            Kind::Other(b'x') => {
                for (key, value) in pax(&text(&from, entry.size).await?) {
                    match key.as_str() {
                        "path" => long_name = Some(value),
                        "linkpath" => long_link = Some(value),
                        "size" => long_size = value.parse().ok(),
                        _ => {}
                    }
                }
                continue;
            }
            Kind::Other(b'g') => {
                receive(&from, entry.size, None).await?;
                continue;
            }
            _ => {}
        }
        if let Some(name) = long_name.take() {
            if entry.kind == Kind::File && name.ends_with('/') {
                entry.kind = Kind::Folder;
            }
            entry.name = name;
        }
        if let (Some(to), Kind::Link(link) | Kind::HardLink(link)) = (long_link.take(), &mut entry.kind) {
            *link = to;
        }
        entry.size = long_size.take().unwrap_or(entry.size);
        let chosen = wanted.names.is_empty() || wanted.names.iter().any(|(_, name)| under(&entry.name, name));
        if !chosen || wanted.mode == Mode::List {
            if chosen {
                process.stdout.write(format!("{}\n", entry.name).as_bytes()).await?;
            }
            receive(&from, entry.size, None).await?;
            continue;
        }
        if wanted.verbose {
            process.stdout.write(format!("{}\n", entry.name).as_bytes()).await?;
        }
        if let Err(error) = extract(&entry, wanted, process, &from).await {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                return Err(error);
            }
            process.complain(format!("tar: {}: {}", entry.name, reason(&error))).await;
            status = 2;
        }
    }
    // Whoever writes the archive may write more zeros, and must not find nobody there.
    if wanted.file == "-" {
        while from.read(&mut block).await? > 0 {}
    }
    Ok(status)
}

fn under(name: &str, folder: &str) -> bool {
    let (name, folder) = (name.trim_start_matches("./").trim_end_matches('/'), folder.trim_start_matches("./"));
    let folder = folder.trim_end_matches('/');
    name == folder || name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// Makes one entry; its bytes are taken from `from` whatever happens.
async fn extract(entry: &Entry, wanted: &Wanted, process: &Process, from: &Source) -> io::Result<()> {
    let unsafe_name = Path::new(&entry.name).components().any(|part| part == Component::ParentDir);
    let made = async {
        if unsafe_name {
            return Err(io::Error::other("Member name contains '..'"));
        }
        let place = process.place(&wanted.directory.join(entry.name.trim_start_matches('/')).to_string_lossy());
        if let Some(parent) = place.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        match &entry.kind {
            Kind::Folder => {
                tokio::fs::create_dir_all(&place).await?;
                Ok(None)
            }
            Kind::File => {
                if place.is_dir() {
                    return Err(io::Error::from(io::ErrorKind::IsADirectory));
                }
                Ok(Some((tokio::fs::File::create(&place).await?, place)))
            }
            Kind::Link(to) => {
                // It can lead nowhere but further down, so never out of the root.
                let down =
                    Path::new(to).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
                if !down {
                    return Err(io::Error::other(format!("skipping unsafe symlink to '{to}'")));
                }
                if place.symlink_metadata().is_ok_and(|known| known.is_symlink() || known.is_file()) {
                    tokio::fs::remove_file(&place).await?;
                }
                tokio::fs::symlink(to, &place).await?;
                Ok(None)
            }
            Kind::HardLink(to) => {
                let to = process.place(&wanted.directory.join(to.trim_start_matches('/')).to_string_lossy());
                tokio::fs::copy(to, &place).await?;
                Ok(None)
            }
            Kind::Other(_) => Err(io::Error::other("not a file, folder or link: skipped")),
        }
    };
    let made = made.await;
    let (mut file, result) = match made {
        Ok(Some((file, place))) => (Some((file, place)), Ok(())),
        Ok(None) => (None, Ok(())),
        Err(error) => (None, Err(error)),
    };
    receive(from, entry.size, file.as_mut().map(|(file, _)| file)).await?;
    result?;
    if let Some((mut file, _)) = file {
        file.flush().await?;
        let mode = std::fs::Permissions::from_mode(entry.mode & 0o777 | 0o600);
        file.set_permissions(mode).await?;
        if wanted.keep_time {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(entry.time);
            let file = file.into_std().await;
            tokio::task::spawn_blocking(move || file.set_modified(time)).await.map_err(io::Error::other)??;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn arguments_as_kubectl_writes_them() {
        let table = [
            ("cf - /tmp/a b", Mode::Create, "", 2),
            ("-xmf - -C /tmp/x", Mode::Extract, "/tmp/x", 0),
            ("--no-same-permissions --no-same-owner -xmf - -C /tmp/x", Mode::Extract, "/tmp/x", 0),
            ("-tf -", Mode::List, "", 0),
            ("-C /a -C b -cf- .", Mode::Create, "/a/b", 1),
            ("xf -", Mode::Extract, "", 0),
            ("--extract --file=- --directory=/z", Mode::Extract, "/z", 0),
        ];
        for (text, mode, directory, names) in table {
            let wanted = wanted(&words(text)).unwrap();
            let found = (wanted.mode, wanted.file.as_str(), wanted.directory.to_str().unwrap(), wanted.names.len());
            assert_eq!(found, (mode, "-", directory, names), "{text}");
        }
        for text in ["", "-xzf -", "cf -", "-x --what", "-xf"] {
            assert!(wanted(&words(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn pax_records() {
        let records = pax(b"19 path=some/name0\n6 a=b\n99 cut=off\n");
        assert_eq!(records, [("path".to_owned(), "some/name0".to_owned()), ("a".to_owned(), "b".to_owned())]);
        assert!(pax(b"0 \n1 \n").is_empty());
    }

    proptest! {
        #[test]
        fn headers_are_read_as_written(
            name in "[a-z/]{1,99}[a-z]",
            link in proptest::option::of("[a-z/]{1,100}"),
            mode in 0..0o7777_u32,
            size in any::<u64>(),
            time in 0..1_u64 << 33,
        ) {
            let kind = link.map_or(Kind::File, Kind::Link);
            let entry = Entry { name, kind, mode, size, time };
            let block = write_header(&entry).try_into().unwrap();
            prop_assert_eq!(read_header(&block).unwrap(), Some(entry));
        }

        #[test]
        fn whatever_comes_nothing_panics(bytes in proptest::collection::vec(any::<u8>(), BLOCK), fix in any::<bool>()) {
            let mut block: [u8; BLOCK] = bytes.try_into().unwrap();
            if fix {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            let _ = read_header(&block);
            let _ = pax(&block);
        }
    }
}
