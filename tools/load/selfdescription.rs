//! The element that a recording carries in its metadata to say what should be in it. RFC 7865 §9 lets any element of another
//! namespace stand in `recording`; a recorder keeps it with the body and need not understand it.

use std::net::SocketAddr;

use super::codec::{Audio, Codec};
use super::plan::Plan;
use super::template::Source;

const OPEN: &str = "<load:run ";
const YES: &str = "yes";
const NO: &str = "no";

/// What one call of a run says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    pub plan: Plan,
    pub call: u32,
    pub call_id: String,
    pub sources: Vec<Source>,
}

pub fn write(plan: &Plan, call: u32, call_id: &str, sources: &[Source]) -> String {
    let join = |pick: fn(&Source) -> SocketAddr| {
        sources.iter().map(|source| pick(source).to_string()).collect::<Vec<_>>().join(" ")
    };
    format!(
        "{OPEN}xmlns:load=\"urn:sipreel:load:1\" run=\"{}\" seed=\"{}\" calls=\"{}\" call=\"{call}\" streams=\"{}\" \
         codec=\"{}\" audio=\"{}\" ptime=\"{}\" packets=\"{}\" loss-ppm=\"{}\" reorder-ppm=\"{}\" duplicate-ppm=\"{}\" \
         sender-reports=\"{}\" call-id=\"{call_id}\" rtp=\"{}\" rtcp=\"{}\"/>",
        plan.run,
        plan.seed,
        plan.calls,
        plan.streams,
        plan.codec.name(),
        plan.audio.name(),
        plan.ptime_ms,
        plan.turns,
        plan.loss_ppm,
        plan.reorder_ppm,
        plan.duplicate_ppm,
        if plan.sender_reports { YES } else { NO },
        join(|source| source.rtp),
        join(|source| source.rtcp),
    )
}

/// Finds the element in a metadata body; `None`: not one of ours.
pub fn read(xml: &str) -> Option<Described> {
    let element = xml.split_once(OPEN)?.1.split_once("/>")?.0;
    let attribute = |name: &str| {
        let at = element.find(&format!(" {name}=\""))? + name.len() + 3;
        element[at..].split('"').next()
    };
    let number = |name: &str| attribute(name)?.parse::<u32>().ok();
    let plan = Plan {
        run: attribute("run")?.to_owned(),
        seed: attribute("seed")?.parse().ok()?,
        calls: number("calls")?,
        streams: number("streams")?,
        codec: Codec::from_name(attribute("codec")?)?,
        audio: Audio::from_name(attribute("audio")?)?,
        ptime_ms: number("ptime").filter(|ptime| (1..=120).contains(ptime))?,
        turns: number("packets")?,
        loss_ppm: number("loss-ppm")?,
        reorder_ppm: number("reorder-ppm")?,
        duplicate_ppm: number("duplicate-ppm")?,
        sender_reports: attribute("sender-reports").is_none_or(|value| value == YES),
    };
    let addresses = |name: &str| -> Option<Vec<SocketAddr>> {
        attribute(name)?.split(' ').map(|text| text.parse().ok()).collect()
    };
    let (rtp, rtcp) = (addresses("rtp")?, addresses("rtcp")?);
    let sources: Vec<Source> = rtp.into_iter().zip(rtcp).map(|(rtp, rtcp)| Source { rtp, rtcp }).collect();
    let whole = sources.len() == plan.streams as usize;
    whole.then_some(Described {
        call: number("call")?,
        call_id: attribute("call-id")?.to_owned(),
        plan,
        sources,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::plan::tests::plan;
    use crate::load::template::tests::sources;

    #[test]
    fn what_is_written_is_read() {
        let text = format!("<recording>{}</recording>", write(&plan(), 1, "c@h", &sources()));
        let described = read(&text).unwrap();
        let expected = Described { plan: plan(), call: 1, call_id: "c@h".into(), sources: sources() };
        assert_eq!(described, expected);
    }

    #[test]
    fn a_run_without_sender_reports_says_so_and_older_ones_had_them() {
        let silent = Plan { sender_reports: false, ..plan() };
        assert!(!read(&write(&silent, 1, "c@h", &sources())).unwrap().plan.sender_reports);
        let older = write(&plan(), 1, "c@h", &sources()).replace(" sender-reports=\"yes\"", "");
        assert_eq!(read(&older).unwrap().plan, plan());
    }

    #[test]
    fn foreign_metadata_is_not_ours() {
        assert_eq!(read("<recording/>"), None);
        assert_eq!(read("<load:run seed=\"1\"/>"), None);
    }
}
