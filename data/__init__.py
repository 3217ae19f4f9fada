"""Rows in, packs out. Nothing in here knows about models. What becomes of a row, until its gradient:

    row        data/rows/sources.py: read_rows                one line of a file, with its address
    Pair       data/rows/pairs.py: parse_pair                 two conversations; or `InvalidPair`, the row is rejected
    text       data/tokens/template_sandbox.py: render        both through the chat template, in a child process
    token ids  data/tokens/chat.py: Chat.encode, make_group   one prefix with two responses
    store      data/tokens/pair_store.py: open_store          columns on disk, which every later run finds
    selection  data/selection/prepare.py: prepare_data        filters, gates, limits, splits; what is left: a PairSet
    order      data/selection/mixture.py: Mixture.take        the next pairs of the epoch's seeded order
    plan       data/packing/plan.py: plan_step                which pairs of a step lie in which pack of which rank
    pack       data/packing/pack.py: build_pack               one row of tokens, and where each response ends
    step       data/packing/loader.py: PairLoader.build, PairLoader.steps   this rank's packs, margins and weights
    attention  models/attention.py: packed_attention          rejected reads the prefix that lies before chosen
    rewards    models/reward_model.py: RewardModel.forward    one for each response
    loss       models/losses.py: bradley_terry                summed over the pairs of a pack
    gradient   train/loop.py: _micro_step                     divided once by the pairs of the step over all ranks

Other files see the pair on its way and give it no new form. They decide whether it stays: data/rows/checks.py and
columns.py, data/selection/stages.py and gates.py. They describe it: data/selection/data_card.py. They hand it on:
train/run/resolve.py, setup.py and run.py. Helpers would do the same with any data: data/common/,
data/rows/parallel_map.py.

On the way five numbers say which pair it is, each counted from 0:

    row             in the source: `Row.number`, `PairStore.row`. People are shown it counted from 1
    store index     in the store, which has no rejected rows: `store_index`, `PairSet.indices`
    set position    in the PairSet, which has no removed pairs: `set_position`. Arrays named `pairs` hold it beside the
                    number of the set: (num_pairs, 2) int64
    epoch position  in one epoch of the mixture: `epoch_position`. A run's `pairs_seen` counts on through all epochs
    step position   in the `pairs` of one step: `step_positions`, `StepPlan.packs`
"""
