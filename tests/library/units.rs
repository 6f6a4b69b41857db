//! The units of systemd.

const UNIT: &str = include_str!("../../packaging/systemd/koala-agent.service");
const INSTANCE: &str = include_str!("../../packaging/systemd/koala-agent@.service");
const TMPFILES: &str = include_str!("../../packaging/tmpfiles.d/koala-agent.conf");

/// What the unit of an instance has in place of the unit's own, and nothing else.
const DIFFERENCES: [(&str, &str); 11] = [
    ("[Unit]\nDescription=Koala event agent\n", "[Unit]\nDescription=Koala event agent %i\n"),
    ("RequiresMountsFor=/var/spool/koala-agent\n", "RequiresMountsFor=/var/spool/koala-agent-%i\n"),
    (
        "ExecStart=/usr/bin/koala-agent run\n",
        "# The spool of an instance, by the lines that make the one without a name.\n\
         ExecStartPre=+/bin/sh -c \"sed 's|/koala-agent|&-%i|' /usr/lib/tmpfiles.d/koala-agent.conf | \
         systemd-tmpfiles --create -\"\n\
         ExecStart=/usr/bin/koala-agent --instance %i run\n",
    ),
    ("/usr/bin/koala-agent check", "/usr/bin/koala-agent --instance %i check"),
    ("\nStateDirectory=koala-agent\n", "\nStateDirectory=koala-agent-%i\n"),
    ("\nRuntimeDirectory=koala-agent\n", "\nRuntimeDirectory=koala-agent-%i\n"),
    (":/etc/koala-agent/public-key\n", ":/etc/koala-agent/%i.public-key\n"),
    (":/etc/koala-agent/hash-key\n", ":/etc/koala-agent/%i.hash-key\n"),
    ("`systemctl restart koala-agent`", "`systemctl restart koala-agent@NAME`"),
    ("`systemctl edit koala-agent`", "`systemctl edit koala-agent@NAME`"),
    ("ReadWritePaths=-/var/spool/koala-agent\n", "ReadWritePaths=-/var/spool/koala-agent-%i\n"),
];

#[test]
fn the_unit_of_an_instance_differs_from_the_unit_by_the_name_alone() {
    let (note, instance) = INSTANCE.split_once('\n').unwrap();
    assert!(note.starts_with("# "));
    let wanted = DIFFERENCES.iter().fold(UNIT.to_owned(), |text, (own, named)| {
        assert_eq!(text.matches(own).count(), 1, "{own}");
        text.replace(own, named)
    });
    assert_eq!(instance, wanted);
}

#[test]
fn the_spool_of_an_instance_is_made_of_lines_that_name_each_folder_once() {
    for line in TMPFILES.lines().filter(|line| !line.starts_with('#')) {
        // sed replaces the first on a line.
        assert_eq!(line.matches("/koala-agent").count(), 1, "{line}");
    }
}
