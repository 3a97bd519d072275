"""Tables beside older files: their labels are those that a build reads from the same table."""

from __future__ import annotations

from xact.files.read import load_table
from xact.recipe.stimuli_schema import CaptionsStimuli
from xact.stimuli.open import open_stimuli


def test_escaped_texts_of_a_caption_table_are_the_texts_that_a_build_reads(tmp_path):
    file = tmp_path / "captions.csv"
    file.write_text("nsd_id,name,caption,remark\n3,nsd_00003,'- a dog,'=x\n4,nsd_00004,a cat,'tis\n")
    table, _ = load_table(file)
    block = CaptionsStimuli(source="captions", file=str(file))
    built = open_stimuli(block, tmp_path)
    assert [*table.ids] == [*built.table.ids] == ["nsd_00003", "nsd_00004"]
    assert table.columns["remark"] == built.table.columns["remark"] == ["=x", "'tis"]
    assert table.columns["caption"] == ["- a dog", "a cat"] == [built.read(row).decode() for row in (0, 1)]
