/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.simulations

import dev.tideline.core.Events
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.into
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.requireThat
import dev.tideline.core.then
import java.util.PriorityQueue

/** Sets the traffic that a simulation sends through the harbour. */
data class Scenario(
    val berths: Int,
    val length: Span,
    val meanGap: Span,
    val shortestStay: Span,
    val longestStay: Span,
)

/** Sums up how long the ships had to wait. */
data class SimulationResult(
    val served: Int,
    val longestWait: Span,
    val meanWaitMinutes: Double,
    val berthUse: Double,
)

/** Tells that a simulation came to its end. */
data class SimulationFinished(
    val seed: Seed,
    val result: SimulationResult,
    override val at: Moment,
) : TideEvent

/** Sends imaginary ships to imaginary berths, first come first served. */
class HarbourSimulation(
    private val events: Events,
    private val clock: TideClock,
) {
    private val log = ledger<HarbourSimulation>()

    /** Runs a scenario with the dice of a seed. */
    fun run(scenario: Scenario, seed: Seed): Outcome<SimulationResult> =
        requireThat(scenario.berths > 0, Reason.INVALID) { "a harbour needs a berth" }
            .then {
                requireThat(scenario.shortestStay <= scenario.longestStay, Reason.INVALID) {
                    "the shortest stay is longer than the longest"
                }
            }
            .into { simulate(scenario, Dice(seed)) }
            .onDone {
                log.note("simulation.finished", "seed" to seed, "served" to it.served)
                events.publish(SimulationFinished(seed = seed, result = it, at = clock.now()))
            }

    private fun simulate(scenario: Scenario, dice: Dice): SimulationResult {
        val freeAt = PriorityQueue(List(scenario.berths) { clock.now() })
        val end = clock.now() + scenario.length
        val waits = mutableListOf<Span>()
        var occupied = Span.ZERO
        var arrival = clock.now() + dice.rollGap(scenario.meanGap)
        while (arrival < end) {
            val start = maxOf(arrival, freeAt.remove())
            val minutes = scenario.shortestStay.minutes.toInt()..scenario.longestStay.minutes.toInt()
            val stay = Span.ofMinutes(dice.rollIn(minutes))
            waits += start - arrival
            occupied += stay
            freeAt += start + stay
            arrival += dice.rollGap(scenario.meanGap)
        }
        return SimulationResult(
            served = waits.size,
            longestWait = waits.maxOrNull() ?: Span.ZERO,
            meanWaitMinutes = waits.sumOf { it.minutes } / maxOf(1, waits.size).toDouble(),
            berthUse = occupied.hours / (scenario.length.hours * scenario.berths),
        )
    }
}
