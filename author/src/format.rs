//! The one layout of a policy file, so that a change of policy is all that a diff shows.

use cedar_policy::{PolicyId, pst};
use cedar_policy_formatter::{Config, policies_str_to_pretty};
use hoplite_policy::text::{COMPILE_STACK_BYTES, Statement, on_stack, parse, statements, token_length};
use hoplite_policy::{Fault, Source};

/// Cedar's own defaults, and so those of editors: a file is laid out alike by all of them.
const LINE_WIDTH: usize = 80;
const INDENT_WIDTH: isize = 2;

/// A file of policies in Cedar's own layout, comments kept. The text is new, the policies are not: each is compared with
/// what it was, and so is each comment.
///
/// # Errors
/// What Cedar cannot parse, and a file whose layout cannot be changed without changing more than that.
pub fn format(source: &Source) -> Result<String, Vec<Fault>> {
    on_stack(COMPILE_STACK_BYTES, || format_here(source))
        .unwrap_or_else(|error| Err(vec![unchanged(source, &error.to_string())]))
}

fn format_here(source: &Source) -> Result<String, Vec<Fault>> {
    let before = policies(source, &source.text)?;
    if before.is_empty() {
        // The formatter would drop what is not between policies.
        return Ok(source.text.clone());
    }
    let config = Config {
        line_width: LINE_WIDTH,
        indent_width: INDENT_WIDTH,
    };
    let text =
        policies_str_to_pretty(&source.text, &config).map_err(|error| vec![unchanged(source, &error.to_string())])?;
    if policies(source, &text).ok().as_ref() != Some(&before) {
        return Err(vec![unchanged(source, "its policies would not be the same")]);
    }
    if comments(&text) != comments(&source.text) {
        return Err(vec![unchanged(source, "a comment would be lost or moved")]);
    }
    Ok(text)
}

fn unchanged(source: &Source, why: &str) -> Fault {
    let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
    Fault::whole(
        &source.name,
        format!("the file cannot be formatted: {why}; lay it out by hand, or put its comments on lines of their own"),
    )
}

/// The policies of a text in order, without names and places.
fn policies(source: &Source, text: &str) -> Result<Vec<pst::Template>, Vec<Fault>> {
    let (mut policies, mut faults) = (Vec::new(), Vec::new());
    for statement in statements(text) {
        match policy(source, text, &statement) {
            Ok(policy) => policies.push(policy),
            Err(found) => faults.extend(found),
        }
    }
    if faults.is_empty() { Ok(policies) } else { Err(faults) }
}

fn policy(source: &Source, text: &str, statement: &Statement<'_>) -> Result<pst::Template, Vec<Fault>> {
    let fault = |at: usize, reason: String| Fault::at(&source.name, text, statement.offset.saturating_add(at), reason);
    let policy = parse(statement, &fault)?.new_id(PolicyId::new("policy"));
    let tree = policy.to_pst().map_err(|error| vec![fault(0, error.to_string())])?;
    Ok(tree.body().clone())
}

/// The comments of a text in order, without the spaces around them.
fn comments(text: &str) -> Vec<&str> {
    let mut comments = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            let length = rest.find(['\n', '\r']).unwrap_or(rest.len());
            comments.extend(rest.get(..length).map(str::trim));
            length
        } else {
            token_length(first, rest)
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    comments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formatted(text: &str) -> Result<String, String> {
        let source = Source {
            name: "a.cedar".to_owned(),
            text: text.to_owned(),
        };
        format(&source).map_err(|faults| faults.iter().map(Fault::render).collect())
    }

    const TIDY: &str = r#"// Who may call `ledger`.
// The shop reads it. // "twice"
@id("ledger/shop-reads")
@owner("team-ledger")
permit (
  principal in Hoplite::Path::"demo.hoplite/shop",
  action in [Hoplite::Action::"read"], // only that
  resource in Hoplite::Service::"ledger"
)
when { context.seg has s0 && context.seg.s0 == "a//b;" };

@id("b")
forbid (principal, action, resource);
// the end
"#;

    #[test]
    fn layout_is_all_that_changes() {
        let loose = TIDY.replace("\n  ", "\n").replace(", // only", ",    // only");
        assert_eq!(formatted(&loose).unwrap(), TIDY);
        assert_eq!(formatted(TIDY).unwrap(), TIDY, "once is enough");
        assert_eq!(formatted("// nothing\n\n").unwrap(), "// nothing\n\n");
        assert_eq!(formatted("").unwrap(), "");
    }

    /// Cedar joins the comments before a policy. That is its layout, and an editor's too.
    #[test]
    fn blank_lines_between_comments_go() {
        let text = "// one\n\n// two\npermit (principal, action, resource);\n";
        assert_eq!(formatted(text).unwrap(), text.replace("\n\n", "\n"));
    }

    #[test]
    fn what_cannot_be_parsed_stays() {
        for (text, expected) in [
            ("permit (", "a.cedar:1:9: unexpected end of input"),
            ("permit (principal, action, resource", "a.cedar:1:36"),
            (
                &format!(
                    "permit (principal, action, resource) when {{ {} }};",
                    "(".repeat(10_000)
                ),
                "10000 bytes",
            ),
            (
                &format!(
                    "permit (principal, action, resource) when {{ {} }};",
                    "!(".repeat(2_000)
                ),
                "nests deeper",
            ),
        ] {
            let refused = formatted(text).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn comments_and_policies_are_compared() {
        let source = |text: &str| Source {
            name: "a.cedar".to_owned(),
            text: text.to_owned(),
        };
        let policies = |text: &str| policies(&source(text), text).unwrap();
        let base = policies("@id(\"a\") permit (principal, action, resource) when { 1 == 1 };");
        assert_eq!(
            base,
            policies("@id(\"a\")\npermit(principal,action,resource)when{1==1};")
        );
        for other in [
            "@id(\"b\") permit (principal, action, resource) when { 1 == 1 };",
            "@id(\"a\") forbid (principal, action, resource) when { 1 == 1 };",
            "@id(\"a\") permit (principal, action, resource) when { 1 == 2 };",
            "@id(\"a\") permit (principal, action, resource) unless { 1 == 1 };",
            "@id(\"a\") permit (principal, action, resource);",
        ] {
            assert_ne!(base, policies(other), "{other}");
        }
        assert_eq!(comments("// a \n\"// no\" //b\r//c"), ["// a", "//b", "//c"]);
    }
}
