/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.pilots

import dev.tideline.core.Events
import dev.tideline.core.InMemoryStore
import dev.tideline.core.Metres
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.Store
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.Window
import dev.tideline.core.done
import dev.tideline.core.into
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.refuse
import dev.tideline.core.requireThat
import dev.tideline.core.then
import dev.tideline.ships.Ship
import dev.tideline.ships.ShipId

/** Identifies a pilot by licence. */
@JvmInline
value class PilotId(val raw: String) {
    override fun toString(): String = raw
}

/** Ranks pilots by the length of the ships they may bring in. */
enum class PilotGrade(val longest: Metres) {
    THIRD(Metres(90.0)),
    SECOND(Metres(180.0)),
    FIRST(Metres(260.0)),
    SENIOR(Metres(420.0)),
}

/** Describes a pilot. */
data class Pilot(val id: PilotId, val name: String, val grade: PilotGrade)

/** Records that a pilot serves a ship during a window. */
data class PilotTurn(val pilot: PilotId, val ship: ShipId, val window: Window)

/** Tells that a pilot was sent to a ship. */
data class PilotOrdered(val pilot: PilotId, val ship: ShipId, override val at: Moment) : TideEvent

/** Keeps the pilots who hold a licence. */
interface PilotStore : Store<PilotId, Pilot> {
    /** Lists the pilots who may bring in a ship of the length, lowest grade first. */
    fun listLicensedFor(length: Metres): List<Pilot>
}

/** Keeps the pilots in memory. */
class InMemoryPilotStore : InMemoryStore<PilotId, Pilot>("pilot", Pilot::id), PilotStore {
    override fun listLicensedFor(length: Metres): List<Pilot> =
        listWhere { it.grade.longest >= length }.sortedBy { it.grade }
}

/** Shares the work fairly among the pilots and leaves them a break after each turn. */
class PilotRoster(
    private val pilots: PilotStore,
    private val events: Events,
    private val clock: TideClock,
    private val breakAfterTurn: Span = Span.ofHours(2),
) {
    private val log = ledger<PilotRoster>()
    private val turns = mutableListOf<PilotTurn>()

    /** Orders the licensed pilot who has worked least, so that nobody is worn out. */
    fun order(ship: Ship, window: Window): Outcome<PilotTurn> {
        val licensed = pilots.listLicensedFor(ship.length)
        return requireThat(licensed.isNotEmpty(), Reason.FORBIDDEN) { "nobody may bring in ${ship.name}" }
            .then {
                val ready = licensed.filter { isReady(it.id, window) }
                val chosen = ready.minWithOrNull(compareBy({ it.grade }, { countMinutes(it.id) }))
                chosen?.let { done(it) } ?: refuse(Reason.FULL) { "all pilots for ${ship.name} are busy" }
            }
            .into { pilot -> PilotTurn(pilot = pilot.id, ship = ship.id, window = window) }
            .onDone { turn ->
                turns += turn
                log.note("pilot.ordered", "pilot" to turn.pilot, "ship" to ship.id)
                events.publish(PilotOrdered(pilot = turn.pilot, ship = ship.id, at = clock.now()))
            }
    }

    /** Counts the minutes that a pilot has been promised to ships. */
    fun countMinutes(id: PilotId): Long = turns.filter { it.pilot == id }.sumOf { it.window.length.minutes }

    private fun isReady(id: PilotId, window: Window): Boolean {
        val wanted = Window(window.from - breakAfterTurn, window.until + breakAfterTurn)
        return turns.none { it.pilot == id && it.window.overlaps(wanted) }
    }
}
