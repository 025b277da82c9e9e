//! The little XML that the protocols need, written and read without the libraries the client uses to do the same.

use quick_xml::Reader;
use quick_xml::events::Event;

/// A document being written.
pub(crate) struct Xml(String);

impl Xml {
    pub(crate) fn new() -> Self {
        Self("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned())
    }

    /// An element around what `inside` writes.
    pub(crate) fn element(&mut self, name: &str, inside: impl FnOnce(&mut Self)) {
        self.0.push_str(&format!("<{name}>"));
        inside(self);
        let bare = name.split(' ').next().unwrap_or(name);
        self.0.push_str(&format!("</{bare}>"));
    }

    /// An element that holds text.
    pub(crate) fn text(&mut self, name: &str, text: &str) {
        self.element(name, |xml| xml.0.push_str(&escape(text)));
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}

/// Escapes as the services do: a control character becomes a reference that XML 1.0 does not allow, which is
/// why listings have to be asked for with `encoding-type=url`.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push_str(&format!("&#x{:x};", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// One element of a document that was read: its text, with nothing trimmed, and its children.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) children: Vec<Node>,
}

impl Node {
    pub(crate) fn child(&self, name: &str) -> Option<&Node> {
        self.children.iter().find(|child| child.name == name)
    }

    pub(crate) fn child_text(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }
}

/// The root element of a document, or `None` if it is not well formed.
pub(crate) fn parse(document: &[u8]) -> Option<Node> {
    let mut reader = Reader::from_reader(document);
    let mut open: Vec<Node> = vec![Node::default()];
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) => open.push(named(tag.local_name().as_ref())),
            Event::Empty(tag) => open.last_mut()?.children.push(named(tag.local_name().as_ref())),
            Event::End(_) => {
                let done = open.pop()?;
                open.last_mut()?.children.push(done);
            }
            Event::Text(text) => open.last_mut()?.text.push_str(&text),
            Event::CData(text) => open.last_mut()?.text.push_str(&text),
            Event::GeneralRef(reference) => {
                let c = match reference.resolve_char_ref().ok()? {
                    Some(c) => c,
                    None => match reference.as_ref() {
                        "amp" => '&',
                        "lt" => '<',
                        "gt" => '>',
                        "quot" => '"',
                        "apos" => '\'',
                        _ => return None,
                    },
                };
                open.last_mut()?.text.push(c);
            }
            Event::Eof => break,
            _ => {}
        }
    }
    let mut top = open.pop()?;
    (open.is_empty() && top.children.len() == 1).then(|| top.children.remove(0))
}

fn named(name: &str) -> Node {
    Node { name: name.to_owned(), ..Node::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut xml = Xml::new();
        xml.element("Delete xmlns=\"http://x/\"", |xml| {
            xml.element("Object", |xml| xml.text("Key", "  <a> & \"b\"'\u{1}\n数 "));
            xml.text("Quiet", "");
        });
        let root = parse(&xml.finish()).unwrap();
        assert_eq!(root.name, "Delete");
        assert_eq!(root.child("Object").unwrap().child_text("Key"), Some("  <a> & \"b\"'\u{1}\n数 "));
        assert_eq!(root.child_text("Quiet"), Some(""));
    }

    #[test]
    fn what_is_not_well_formed_is_refused() {
        for bad in ["", "<a>", "<a></b>", "<a/><b/>", "<a>&nope;</a>", "plain"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
