//! retry and discard.

use crate::common::setup::{Setup, assert_says};

#[test]
fn each_id_has_a_line_and_the_worst_decides_the_exit_code() {
    for (arguments, code, said, after) in [
        (&["retry", "refused"][..], 0, "refused  pending again", ("refused", "pending")),
        (&["retry", "waiting"], 0, "waiting  is pending", ("waiting", "pending")),
        (&["retry", "nobody"], 65, "nobody  stays skipped: no_identity", ("nobody", "skipped")),
        (&["retry", "invalid"], 65, "invalid  stays failed: invalid_field", ("invalid", "failed")),
        (&["retry", "delivered"], 65, "its body is not kept any more", ("delivered", "delivered")),
        (&["retry", "none", "refused"], 66, "none  no event has this messageId", ("refused", "pending")),
        (&["discard", "waiting"], 0, "waiting  discarded", ("waiting", "discarded")),
        (&["discard", "refused"], 0, "refused  discarded", ("refused", "discarded")),
        (
            &["discard", "delivered", "waiting"],
            65,
            "is delivered or discarded already",
            ("waiting", "discarded"),
        ),
        (&["discard", "none", "delivered"], 66, "no event has this messageId", ("delivered", "delivered")),
    ] {
        let setup = Setup::with_events();
        let ran = setup.run(arguments);
        assert_eq!(ran.code, code, "{ran:?}");
        assert_says(&ran.out, &[said]);
        assert_eq!(setup.state_of(after.0).as_deref(), Some(after.1), "{arguments:?}");
    }
}

#[test]
fn retry_by_state_requeues_all_that_can_be_sent() {
    let setup = Setup::with_events();
    let ran = setup.run(&["retry", "--state", "failed,skipped,delivered"]);
    assert_eq!(ran.code, 0);
    assert_says(
        &ran.out,
        &[
            "1 event pending again",
            "1 event still cannot be sent: no_identity",
            "1 event still cannot be sent: invalid_field",
            "1 event without a body any more",
        ],
    );
    assert_eq!(setup.state_of("refused").as_deref(), Some("pending"));
    let ran = setup.run(&["retry", "--state", "failed", "--reason", "too_large", "--since", "2h"]);
    assert_eq!(ran.code, 0);
    assert_says(&ran.out, &["0 events pending again", "none matches"]);
}

#[test]
fn a_retry_wakes_the_running_agent() {
    let setup = Setup::with_events();
    let outbox = setup.open_outbox();
    let retry_requests = outbox.writer.retry_requests();
    let before = *retry_requests.borrow();
    assert_eq!(setup.run(&["retry", "refused"]).code, 0);
    let since = std::time::Instant::now();
    while *retry_requests.borrow() == before {
        assert!(since.elapsed().as_secs() < 60, "the agent was not told");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    outbox.close();
}
