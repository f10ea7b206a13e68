/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.berths

import dev.tideline.core.Done
import dev.tideline.core.Events
import dev.tideline.core.Metres
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Span
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.Window
import dev.tideline.core.change
import dev.tideline.core.done
import dev.tideline.core.into
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.onRefused
import dev.tideline.core.refuse
import dev.tideline.core.requireThat
import dev.tideline.core.then
import dev.tideline.ships.Ship
import dev.tideline.ships.ShipId

/** Tells that a berth was promised to a ship. */
data class BerthAssigned(
    val berth: BerthId,
    val ship: ShipId,
    val window: Window,
    override val at: Moment,
) : TideEvent

/** Tells that a berth became free before or at the end of its window. */
data class BerthFreed(val berth: BerthId, val ship: ShipId, override val at: Moment) : TideEvent

/** Plans which ship lies at which berth, and until when. */
class BerthPlanner(
    private val berths: BerthStore,
    private val stays: BerthStayStore,
    private val events: Events,
    private val clock: TideClock,
    private val keelRoom: Metres = Metres(0.5),
) {
    private val log = ledger<BerthPlanner>()
    private var lastNumber = 0

    /** Assigns the berth to the ship, or refuses when it does not fit or is taken. */
    fun assign(id: BerthId, ship: Ship, window: Window): Outcome<BerthStay> =
        requireThat(window.from >= clock.now(), Reason.TOO_LATE) { "window $window has already begun" }
            .then { berths.findById(id) }
            .then { berth -> berth.accept(ship, keelRoom) }
            .then { requireFree(id, window) }
            .then { stays.add(stayOf(id, ship, window)) }
            .onDone {
                log.note("berth.assigned", "berth" to id, "ship" to ship.id)
                events.publish(BerthAssigned(berth = id, ship = ship.id, window = window, at = clock.now()))
            }
            .onRefused { log.warn("berth.refused", "berth" to id, "ship" to ship.id, "reason" to it.reason) }

    /** Suggests the shortest berth that fits the ship and is free during the window. */
    fun suggest(ship: Ship, window: Window): Outcome<Berth> {
        val fitting = berths.listTaking(ship.kind).filter { it.accept(ship, keelRoom) is Done }
        return requireThat(fitting.isNotEmpty(), Reason.INVALID) { "no berth fits ${ship.name}" }
            .then {
                val free = fitting.firstOrNull { stays.listAt(it.id, window).isEmpty() }
                free?.let { done(it) } ?: refuse(Reason.FULL) { "every berth for ${ship.name} is taken" }
            }
    }

    /** Frees the berth of a ship that leaves now and cuts its stay short. */
    fun free(ship: ShipId): Outcome<BerthStay> {
        val now = clock.now()
        return stays.findCurrent(ship, now)
            .then { stay -> stays.change(stay.id) { it.copy(window = Window(it.window.from, now)) } }
            .onDone { stay ->
                log.note("berth.freed", "berth" to stay.berth, "ship" to ship)
                events.publish(BerthFreed(berth = stay.berth, ship = ship, at = now))
            }
    }

    /** Finds the first window of the length in which the berth is free. */
    fun findGap(id: BerthId, length: Span): Outcome<Window> =
        berths.findById(id).into {
            var gap = Window(clock.now(), clock.now() + length)
            for (stay in stays.listWhere { it.berth == id }.sortedBy { it.window.from }) {
                if (stay.window.overlaps(gap)) gap = Window(stay.window.until, stay.window.until + length)
            }
            gap
        }

    private fun requireFree(id: BerthId, window: Window): Outcome<Unit> {
        val other = stays.listAt(id, window).firstOrNull()
        return requireThat(other == null, Reason.CONFLICT) { "berth $id is held by ${other?.ship}" }
    }

    private fun stayOf(id: BerthId, ship: Ship, window: Window): BerthStay {
        lastNumber += 1
        return BerthStay(
            id = StayId("S$lastNumber"),
            berth = id,
            ship = ship.id,
            window = window,
        )
    }
}
