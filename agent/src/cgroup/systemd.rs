//! Asking systemd for a part of the tree of control groups.
//!
//! Where systemd runs, the tree is its own, and others may write only in parts that it has delegated to them; what they make elsewhere it
//! may change or remove at any time. So every task gets a scope: a unit that systemd makes around a process that is there
//! already. It is not part of the agent's unit, lives as long as it has a process, whatever becomes of the agent, and systemd takes
//! it away after that.
//!
//! Three calls are all that is needed, so the D-Bus protocol is spoken here and no library for it carried along. See the D-Bus
//! specification, and `org.freedesktop.systemd1(5)` for the calls.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The slice of all tasks. Whoever wants to limit them together does so here.
const SLICE: &str = "batch-agent.slice";

/// What the scopes come before, so that it ends first when the machine goes down.
const AGENT_UNIT: &str = "batch-agent.service";

/// Where systemd listens: the bus, and for root directly where there is no bus.
const SOCKETS: [(&str, bool); 2] = [("/run/dbus/system_bus_socket", true), ("/run/systemd/private", false)];

/// How long systemd may take for an answer, and for moving the process.
const LIMIT: Duration = Duration::from_secs(10);

/// The longest message that is understood, in bytes; what is awaited is short.
const MAX_MESSAGE: usize = 1 << 20;

/// Whether systemd runs this machine: what `sd_booted(3)` asks.
pub(super) fn is_there() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Has systemd put this process into a scope of this name, which ends in `.scope` and no other unit has.
///
/// # Errors
/// When it does not.
pub(super) fn enter_scope(name: &str, description: &str) -> Result<(), String> {
    let pid = std::process::id();
    let modern = [
        ("CollectMode", Value::Text("inactive-or-failed")),
        ("TasksMax", Value::Number(u64::MAX)),
        ("Before", Value::List(AGENT_UNIT)),
    ];
    let needed = [
        ("PIDs", Value::Pids(pid)),
        ("Delegate", Value::Yes),
        ("Slice", Value::Text(SLICE)),
        ("Description", Value::Text(description)),
    ];
    let all: Vec<_> = needed.into_iter().chain(modern).collect();
    // Old versions do not know all properties, and then do nothing.
    let asked = ask(name, &all).or_else(|error| match error {
        Refusal::Answer(_) => ask(name, &needed),
        broken => Err(broken),
    });
    asked.map_err(|refusal| refusal.to_string())?;
    let began = Instant::now();
    while !is_in(name) {
        if began.elapsed() > LIMIT {
            return Err(format!("it has not moved the process into {name} after {} s", LIMIT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    if has_version_1() {
        // It moves the process in its own tree first, then in those of the controllers, and does nothing else meanwhile. So when it answers
        // a question, we are in all of them, and it will not move us again.
        let mut body = Wire::default();
        body.text(name);
        manage("GetUnit", "s", &body.0).map_err(|refusal| refusal.to_string())?;
    }
    Ok(())
}

/// Whether there are trees of version 1.
fn has_version_1() -> bool {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().any(|line| !line.starts_with("0:"))
}

/// Has systemd end a scope in which nobody is any more. It finds that out by itself where it can: with version 1 in a container it cannot.
/// One that is gone already is as good.
pub(super) fn end_scope(name: &str) {
    let mut body = Wire::default();
    body.text(name);
    body.text("replace");
    if let Err(error) = manage("StopUnit", "ss", &body.0) {
        tracing::debug!(%error, scope = name, "the scope of a task that has ended was not there to be ended");
    }
}

/// Whether this process is in the unit, in the tree by which systemd keeps its units.
fn is_in(name: &str) -> bool {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().any(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let is_systemds = parts.next().is_some_and(|names| names.is_empty() || names == "name=systemd");
        is_systemds && parts.next().is_some_and(|path| path.rsplit('/').next() == Some(name))
    })
}

/// Why there is no scope.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("it cannot be asked: {0}")]
    Connection(#[from] io::Error),
    #[error("it said: {0}")]
    Answer(String),
}

fn ask(name: &str, properties: &[(&str, Value<'_>)]) -> Result<(), Refusal> {
    manage("StartTransientUnit", "ssa(sv)a(sa(sv))", &start_transient_unit(name, properties))
}

/// Calls a method of systemd's manager.
fn manage(member: &str, signature: &str, body: &[u8]) -> Result<(), Refusal> {
    let (mut socket, is_bus) = connect()?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_write_timeout(Some(LIMIT))?;
    authenticate(&mut socket)?;
    if is_bus {
        let bus = ("/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", "org.freedesktop.DBus");
        call(&mut socket, 1, bus, "", &[])?;
    }
    let systemd = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", member, "org.freedesktop.systemd1");
    call(&mut socket, 2, systemd, signature, body)
}

fn connect() -> io::Result<(UnixStream, bool)> {
    let mut error = None;
    for (path, is_bus) in SOCKETS {
        match UnixStream::connect(path) {
            Ok(socket) => return Ok((socket, is_bus)),
            Err(failed) => error = error.or(Some(failed)),
        }
    }
    Err(error.unwrap_or_else(|| io::ErrorKind::NotFound.into()))
}

/// Says who we are: the kernel vouches for it.
fn authenticate(socket: &mut UnixStream) -> io::Result<()> {
    let uid = nix::unistd::geteuid().to_string();
    let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
    socket.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") && line.len() < 1024 {
        socket.read_exact(&mut byte)?;
        line.extend_from_slice(&byte);
    }
    if !line.starts_with(b"OK ") {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it does not know us"));
    }
    socket.write_all(b"BEGIN\r\n")
}

/// Calls a method, `(path, interface, member, destination)`, and waits for its answer.
fn call(
    socket: &mut UnixStream,
    serial: u32,
    method: (&str, &str, &str, &str),
    signature: &str,
    body: &[u8],
) -> Result<(), Refusal> {
    socket.write_all(&message(serial, method, signature, body))?;
    loop {
        let answer = Answer::read(socket)?;
        match (answer.kind, answer.reply_to) {
            (METHOD_RETURN, Some(to)) if to == serial => return Ok(()),
            (ERROR, Some(to)) if to == serial => {
                let name = answer.error.unwrap_or_default();
                return Err(Refusal::Answer(format!("{} ({name})", answer.text.unwrap_or_default())));
            }
            // Signals: somebody's name has changed.
            _ => {}
        }
    }
}

const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

/// The header's fields that matter here, by their codes in the protocol.
mod field {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const ERROR_NAME: u8 = 4;
    pub(super) const REPLY_SERIAL: u8 = 5;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SIGNATURE: u8 = 8;
}

/// The value of a property.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Text(&'a str),
    Number(u64),
    Yes,
    /// One process.
    Pids(u32),
    /// A list of one text.
    List(&'a str),
}

/// Bytes in the protocol's order, each value at a multiple of its size. Little-endian.
#[derive(Debug, Default)]
struct Wire(Vec<u8>);

impl Wire {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.0.extend_from_slice(signature.as_bytes());
        self.0.push(0);
    }

    /// An array: its length in bytes, from its first element on, which is at a multiple of `alignment`.
    fn array(&mut self, alignment: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(alignment);
        let from = self.0.len();
        fill(self);
        let length = u32::try_from(self.0.len() - from).unwrap_or(u32::MAX);
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn variant(&mut self, value: Value<'_>) {
        match value {
            Value::Text(text) => {
                self.signature("s");
                self.text(text);
            }
            Value::Number(number) => {
                self.signature("t");
                self.u64(number);
            }
            Value::Yes => {
                self.signature("b");
                self.u32(1);
            }
            Value::Pids(pid) => {
                self.signature("au");
                self.array(4, |wire| wire.u32(pid));
            }
            Value::List(text) => {
                self.signature("as");
                self.array(4, |wire| wire.text(text));
            }
        }
    }
}

/// The arguments of the call: name, mode, properties, and further units, of which there are none.
fn start_transient_unit(name: &str, properties: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut wire = Wire::default();
    wire.text(name);
    wire.text("fail");
    wire.array(8, |wire| {
        for (property, value) in properties {
            wire.align(8);
            wire.text(property);
            wire.variant(*value);
        }
    });
    wire.array(8, |_| ());
    wire.0
}

fn message(
    serial: u32,
    (path, interface, member, destination): (&str, &str, &str, &str),
    signature: &str,
    body: &[u8],
) -> Vec<u8> {
    const METHOD_CALL: u8 = 1;
    const PROTOCOL: u8 = 1;
    let mut wire = Wire(vec![b'l', METHOD_CALL, 0, PROTOCOL]);
    wire.u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    wire.u32(serial);
    wire.array(8, |wire| {
        let texts = [
            (field::PATH, "o", path),
            (field::INTERFACE, "s", interface),
            (field::MEMBER, "s", member),
            (field::DESTINATION, "s", destination),
        ];
        for (code, kind, text) in texts {
            wire.align(8);
            wire.0.push(code);
            wire.signature(kind);
            wire.text(text);
        }
        if !signature.is_empty() {
            wire.align(8);
            wire.0.push(field::SIGNATURE);
            wire.signature("g");
            wire.signature(signature);
        }
    });
    wire.align(8);
    wire.0.extend_from_slice(body);
    wire.0
}

/// What of a message that has come in matters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    kind: u8,
    reply_to: Option<u32>,
    error: Option<String>,
    /// The first text of its body.
    text: Option<String>,
}

impl Answer {
    fn read(socket: &mut impl Read) -> io::Result<Self> {
        let broken = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut head = [0; 16];
        socket.read_exact(&mut head)?;
        // Whoever is asked in little-endian may answer in the other order, but runs on this very machine.
        if head[0] != b'l' {
            return Err(broken("an answer in another byte order"));
        }
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let (body, fields) = (number(4), number(12));
        let length = fields.checked_next_multiple_of(8).and_then(|fields| fields.checked_add(body));
        let length =
            length.filter(|length| *length <= MAX_MESSAGE).ok_or_else(|| broken("a message of absurd length"))?;
        let mut rest = vec![0; length];
        socket.read_exact(&mut rest)?;
        let (fields, body) = (rest.get(..fields).unwrap_or_default(), rest.get(length - body..).unwrap_or_default());
        let mut answer = Self { kind: head[1], ..Self::default() };
        answer.take_fields(fields).ok_or_else(|| broken("a message that cannot be understood"))?;
        if answer.kind == ERROR {
            answer.text = Cursor { bytes: body, at: 0 }.text();
        }
        Ok(answer)
    }

    /// Reads the header's fields, which begin at a multiple of eight.
    fn take_fields(&mut self, bytes: &[u8]) -> Option<()> {
        let mut cursor = Cursor { bytes, at: 0 };
        while cursor.at < bytes.len() {
            cursor.align(8);
            let (code, signature) = (cursor.u8()?, cursor.signature()?);
            match (code, signature.as_str()) {
                (field::REPLY_SERIAL, "u") => self.reply_to = Some(cursor.u32()?),
                (field::ERROR_NAME, "s") => self.error = Some(cursor.text()?),
                (_, "s" | "o") => drop(cursor.text()?),
                (_, "u") => drop(cursor.u32()?),
                (_, "g") => drop(cursor.signature()?),
                _ => return None,
            }
        }
        Some(())
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        self.take(4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.u32()?).ok()?;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1).map(|_| text)
    }

    fn signature(&mut self) -> Option<String> {
        let length = self.u8()?.into();
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1).map(|_| text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_written_as_the_specification_says() {
        let call = message(7, ("/a", "b.c", "D", "e.f"), "", &[]);
        let expected = b"l\x01\0\x01\0\0\0\0\x07\0\0\0\x3d\0\0\0\
            \x01\x01o\0\x02\0\0\0/a\0\0\0\0\0\0\x02\x01s\0\x03\0\0\0b.c\0\0\0\0\0\
            \x03\x01s\0\x01\0\0\0D\0\0\0\0\0\0\0\x06\x01s\0\x03\0\0\0e.f\0";
        let mut expected = expected.to_vec();
        expected[12] = u8::try_from(expected.len() - 16).unwrap();
        expected.resize(expected.len().next_multiple_of(8), 0);
        assert_eq!(call, expected);
    }

    #[test]
    fn properties_are_aligned() {
        let body = start_transient_unit("x", &[("PIDs", Value::Pids(5)), ("TasksMax", Value::Number(9))]);
        let mut cursor = Cursor { bytes: &body, at: 0 };
        assert_eq!((cursor.text().as_deref(), cursor.text().as_deref()), (Some("x"), Some("fail")));
        let length = usize::try_from(cursor.u32().unwrap()).unwrap();
        cursor.align(8);
        let from = cursor.at;
        assert_eq!((cursor.text().as_deref(), cursor.signature().as_deref()), (Some("PIDs"), Some("au")));
        assert_eq!((cursor.u32(), cursor.u32()), (Some(4), Some(5)));
        cursor.align(8);
        assert_eq!((cursor.text().as_deref(), cursor.signature().as_deref()), (Some("TasksMax"), Some("t")));
        cursor.align(8);
        assert_eq!(cursor.take(8), Some(&9_u64.to_le_bytes()[..]));
        assert_eq!(cursor.at - from, length);
        assert_eq!(cursor.u32(), Some(0));
    }

    #[test]
    fn answers_are_read_and_broken_ones_refused() {
        let mut fields = Wire::default();
        for (code, kind, text) in [(field::ERROR_NAME, "s", "a.b"), (field::DESTINATION, "s", ":1.2")] {
            fields.align(8);
            fields.0.push(code);
            fields.signature(kind);
            fields.text(text);
        }
        fields.align(8);
        fields.0.push(field::REPLY_SERIAL);
        fields.signature("u");
        fields.u32(2);
        let mut body = Wire::default();
        body.text("no such thing");
        let mut bytes = vec![b'l', ERROR, 0, 1];
        for number in [body.0.len(), 9, fields.0.len()] {
            bytes.extend_from_slice(&u32::try_from(number).unwrap().to_le_bytes());
        }
        fields.align(8);
        bytes.extend_from_slice(&fields.0);
        bytes.extend_from_slice(&body.0);
        let answer = Answer::read(&mut &bytes[..]).unwrap();
        assert_eq!((answer.kind, answer.reply_to), (ERROR, Some(2)));
        assert_eq!((answer.error.as_deref(), answer.text.as_deref()), (Some("a.b"), Some("no such thing")));
        for end in 0..bytes.len() {
            assert!(Answer::read(&mut &bytes[..end]).is_err(), "{end}");
        }
        bytes[12] = 0xff;
        bytes[15] = 0xff;
        assert!(Answer::read(&mut &bytes[..]).is_err());
    }
}
