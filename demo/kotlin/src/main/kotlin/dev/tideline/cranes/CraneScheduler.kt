/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.cranes

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
import dev.tideline.ships.ShipId

/** Identifies a crane on the quay rail. */
@JvmInline
value class CraneId(val raw: String) {
    override fun toString(): String = raw
}

/** Describes a crane by its place on the rail and by how fast it lifts. */
data class Crane(val id: CraneId, val rail: Int, val movesPerHour: Int)

/** Describes the work in one hold, counted from the bow. */
data class HoldWork(val hold: Int, val moves: Int)

/** Gives one crane a run of neighbouring holds. */
data class CraneShare(val crane: CraneId, val holds: List<HoldWork>, val duration: Span) {
    val moves: Int get() = holds.sumOf { it.moves }
}

/** Tells that the cranes of a ship were planned. */
data class CranesPlanned(
    val ship: ShipId,
    val cranes: List<CraneId>,
    val duration: Span,
    override val at: Moment,
) : TideEvent

/** Splits the holds of a ship among cranes that share a rail and so can never pass each other. */
class CraneScheduler(
    private val events: Events,
    private val clock: TideClock,
) {
    private val log = ledger<CraneScheduler>()

    /** Plans the shares so that the slowest crane is done as early as possible. */
    fun plan(ship: ShipId, cranes: List<Crane>, holds: List<HoldWork>): Outcome<List<CraneShare>> =
        requireThat(cranes.isNotEmpty(), Reason.FULL) { "no crane is left for ship $ship" }
            .then {
                val broken = cranes.firstOrNull { it.movesPerHour <= 0 }
                requireThat(broken == null, Reason.INVALID) { "crane ${broken?.id} does not lift" }
            }
            .then {
                requireThat(holds.any { it.moves > 0 }, Reason.INVALID) { "ship $ship has nothing to lift" }
            }
            .into { share(cranes.sortedBy { it.rail }, holds.sortedBy { it.hold }) }
            .onDone { shares ->
                val duration = shares.maxOf { it.duration }
                log.note("cranes.planned", "ship" to ship, "cranes" to shares.size, "duration" to duration)
                events.publish(
                    CranesPlanned(
                        ship = ship,
                        cranes = shares.map { it.crane },
                        duration = duration,
                        at = clock.now(),
                    ),
                )
            }

    private fun share(cranes: List<Crane>, holds: List<HoldWork>): List<CraneShare> {
        var low = 0L
        var high = cranes.minOf { durationOf(it, holds).minutes }
        while (low < high) {
            val middle = (low + high) / 2
            if (deal(cranes, holds, Span(middle)) != null) high = middle else low = middle + 1
        }
        return deal(cranes, holds, Span(high)).orEmpty().filter { it.holds.isNotEmpty() }
    }

    private fun deal(cranes: List<Crane>, holds: List<HoldWork>, limit: Span): List<CraneShare>? {
        var next = 0
        val shares = cranes.map { crane ->
            val first = next
            while (next < holds.size && durationOf(crane, holds.subList(first, next + 1)) <= limit) next += 1
            val taken = holds.subList(first, next)
            CraneShare(crane = crane.id, holds = taken, duration = durationOf(crane, taken))
        }
        return shares.takeIf { next == holds.size }
    }

    private fun durationOf(crane: Crane, holds: List<HoldWork>): Span {
        val moves = holds.sumOf { it.moves }
        return Span((moves * 60L + crane.movesPerHour - 1) / crane.movesPerHour)
    }
}
